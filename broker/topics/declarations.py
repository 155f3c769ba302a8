"""Which policy holds for which topic, and why: the declarations of the configuration and of clients.

Each setting of a topic is decided for itself, by the most specific filter that matches the topic and sets it. Filters
are compared level by level from the left: a name is more specific than `+`, and `+` than `#`:

    gradients/trainer-3   before   gradients/+   before   gradients/#   before   +/trainer-3   before   #
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from broker.errors import LimitExceeded, PermissionDenied
from broker.limits import DECLARATIONS_MAX
from broker.topics.names import ALL_LEVELS, ONE_LEVEL, covers, levels
from broker.topics.policy import CONFIGURATION, PRESSURE, SETTINGS, Declaration, Setting, TopicPolicy
from broker.topics.trie import Trie

DEFAULT: Final = "default"

_RANKS: Final = {ONE_LEVEL: 1, ALL_LEVELS: 2}


@dataclass(frozen=True, slots=True)
class Held:
    """One setting of a topic.

    Attributes:
        setting: its name.
        value: what holds.
        filter: of the declaration that decides; empty when none does.
        origin: `default`, `configuration`, or `declared by` and a client's name.
    """

    setting: str
    value: Setting | None
    filter: str
    origin: str


class Policies:
    """All declarations, and the policies that they make."""

    def __init__(self, defaults: TopicPolicy | None = None, configured: Iterable[Declaration] = ()) -> None:
        """Args:
        defaults: what holds where nothing is declared.
        configured: declarations that no client may replace.
        """
        self.defaults = defaults or TopicPolicy()
        self._declarations: dict[str, Declaration] = {}
        self._trie: Trie[str] = Trie()
        # By the filters that match, so that topics of the same kind share one policy.
        self._made: dict[tuple[str, ...], TopicPolicy] = {}
        for declaration in configured:
            self.declare(declaration)

    def __len__(self) -> int:
        """How many filters have a declaration."""
        return len(self._declarations)

    def declare(self, declaration: Declaration) -> Declaration | None:
        """Adds a declaration, in place of an earlier one for the same filter; one that sets nothing only removes it.

        Returns:
            What it has replaced, if anything.

        Raises:
            PermissionDenied: the configuration has fixed the filter.
            LimitExceeded: there are too many declarations.
        """
        topic_filter = declaration.filter
        earlier = self._declarations.get(topic_filter)
        if earlier is not None and earlier.origin == CONFIGURATION:
            raise PermissionDenied(
                f"the policy of {topic_filter!r} is fixed by the broker's configuration; declare a more specific filter"
            )
        if earlier is None and declaration.settings:
            if len(self) >= DECLARATIONS_MAX:
                advice = "declare filters that match more topics, or clear some by declaring them without settings"
                raise LimitExceeded("declarations_max", len(self) + 1, DECLARATIONS_MAX, advice)
            self._trie.add(topic_filter, topic_filter)
        if declaration.settings:
            self._declarations[topic_filter] = declaration
        elif earlier is not None:
            del self._declarations[topic_filter]
            self._trie.remove(topic_filter, topic_filter)
        self._made.clear()
        return earlier

    def of_topic(self, topic: str) -> TopicPolicy:
        """What holds for a topic."""
        if not self._declarations:
            return self.defaults
        return self._make(self._trie.match(topic))

    def of_filter(self, topic_filter: str) -> TopicPolicy:
        """What holds for all topics that a filter matches: what is declared for it, or for more than it."""
        if topic_filter == PRESSURE:
            return _OF_PRESSURE
        return self._make([declared for declared in self._declarations if covers(declared, topic_filter)])

    def explain(self, topic: str) -> list[Held]:
        """Each setting of a topic with its reason."""
        deciding = {
            name: declaration
            for declaration in map(self._declarations.__getitem__, _least_specific_first(self._trie.match(topic)))
            for name in declaration.settings
        }
        held = []
        for name in SETTINGS:
            declaration = deciding.get(name)
            if declaration is not None:
                held.append(Held(name, declaration.settings[name], declaration.filter, declaration.origin))
            else:
                value = getattr(self.defaults, name)
                held.append(Held(name, value, "", DEFAULT if value == getattr(_BUILT_IN, name) else CONFIGURATION))
        return held

    def _make(self, filters: list[str]) -> TopicPolicy:
        key = tuple(filters)
        policy = self._made.get(key)
        if policy is None:
            if len(self._made) >= DECLARATIONS_MAX:
                self._made.clear()
            settings: dict[str, Setting] = {}
            for topic_filter in _least_specific_first(filters):
                settings.update(self._declarations[topic_filter].settings)
            # Each was checked against the type of its field.
            policy = self._made[key] = replace(self.defaults, **settings)  # type: ignore[arg-type]
        return policy

    def __repr__(self) -> str:
        return f"<Policies declarations={len(self)}>"


_BUILT_IN: Final = TopicPolicy()
_OF_PRESSURE: Final = TopicPolicy(overflow="drop_oldest")
"""The broker waits for nobody, so what is announced to somebody who is slow has to end somewhere."""


def _least_specific_first(filters: Iterable[str]) -> list[str]:
    return sorted(filters, key=_generality, reverse=True)


def _generality(topic_filter: str) -> list[int]:
    return [_RANKS.get(level, 0) for level in levels(topic_filter)]
