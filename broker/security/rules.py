"""Rules of what may be done to which topics: filters that allow, filters that deny, and deny wins.

A topic is allowed if a filter that allows matches it and none that denies does. Of a filter, as somebody subscribes
with one, there are three questions, since it stands for all topics that it matches:

    covered(filter, filters)   is every topic that it matches matched by one of these?    gradients/+ by gradients/#
    overlaps(filter, other)    is there a topic that both match?                          a/+ and +/b, by a/b
    allows(topic)              for one of the topics, when a message comes

`covered` goes through the levels of the filter with those of the others that have matched so far. Where the filter has
a wildcard, a level may be any name: each that one of the others names there, and one that none of them names.

    a/+ by {a/b, a/+}:  a -> {a/b, a/+};  then b -> {a/b, a/+}, and any other name -> {a/+}: covered
    a/+ by {a/b, a/c}:  a -> {a/b, a/c};  then b -> {a/b}, c -> {a/c}, and any other name -> {}: not covered

So two filters may cover together what neither does alone: `a` and `a/+/#` cover `a/#`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker.limits import RULE_STEPS_MAX, TOPIC_BYTES_MAX
from broker.topics.names import ALL_LEVELS, ONE_LEVEL, covers, is_reserved, levels, matches

_ANY_OTHER: Final = ""
"""Stands for a level that no filter names: no level is empty."""
_REMEMBERED_MAX: Final = 4096
"""Topics of which a set of rules remembers whether it allows them."""
_Levels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What is allowed of one verb. Equal if they say the same.

    Attributes:
        allow: filters of topics that are allowed.
        deny: filters of topics that are not, whatever allows them.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    _known: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def allows(self, topic: str) -> bool:
        """Whether one topic is allowed."""
        if len(topic) > TOPIC_BYTES_MAX:
            # It is none; what is remembered has a bound in bytes as well.
            return self._allows(topic)
        known = self._known.get(topic)
        if known is None:
            if len(self._known) >= _REMEMBERED_MAX:
                self._known.clear()
            known = self._known[topic] = self._allows(topic)
        return known

    def _allows(self, topic: str) -> bool:
        return _any_matches(self.allow, topic) and not _any_matches(self.deny, topic)

    def allows_all(self, topic_filter: str) -> bool:
        """Whether every topic that a filter matches is allowed."""
        return covered(topic_filter, self.allow) and not any(overlaps(topic_filter, denied) for denied in self.deny)

    def admits(self, topic_filter: str) -> bool:
        """Whether one may subscribe with a filter: all that it matches is among what is allowed, and not all denied.

        Those of its topics that are denied are left out when messages come; see `allows`.
        """
        return covered(topic_filter, self.allow) and not covered(topic_filter, self.deny)


NOTHING: Final = Rules()


def _any_matches(filters: Iterable[str], topic: str) -> bool:
    return any(matches(topic_filter, topic) for topic_filter in filters)


def overlaps(one: str, other: str) -> bool:
    """Whether there is a topic that both of two checked filters match."""
    wildcards = ONE_LEVEL, ALL_LEVELS
    if (is_reserved(one) and other.startswith(wildcards)) or (is_reserved(other) and one.startswith(wildcards)):
        return False
    first, second = levels(one), levels(other)
    for a, b in zip(first, second, strict=False):
        if ALL_LEVELS in (a, b):
            return True
        if a != b and ONE_LEVEL not in (a, b):
            return False
    # The longer one goes on; `a/#` matches `a` too.
    longer = first[len(second) :] or second[len(first) :]
    return not longer or longer == [ALL_LEVELS]


def covered(topic_filter: str, filters: Sequence[str]) -> bool:
    """Whether every topic that a checked filter matches is matched by one of several others.

    Where none of them does alone, filters that are made for it can take longer than anybody should wait; then the
    answer is that it is not.
    """
    if any(covers(other, topic_filter) for other in filters):
        return True
    wanted = levels(topic_filter)
    # A wildcard in the first level stands for no topic that begins with `$`.
    if is_reserved(topic_filter):
        others = [tuple(levels(other)) for other in filters if not other.startswith((ONE_LEVEL, ALL_LEVELS))]
    elif wanted[0] in (ONE_LEVEL, ALL_LEVELS):
        others = [tuple(levels(other)) for other in filters if not is_reserved(other)]
    else:
        others = [tuple(levels(other)) for other in filters]
    return _Search(wanted).goes(0, others)


class _Search:
    """One search of `covered`, which takes a bounded number of steps."""

    __slots__ = ("_steps", "_wanted")

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = wanted
        self._steps = 0

    def goes(self, depth: int, others: Sequence[_Levels]) -> bool:
        """Whether all topics are covered that begin with the levels chosen so far.

        Args:
            depth: how many those are.
            others: the filters that match them.
        """
        self._steps += 1 + len(others)
        if not others or self._steps > RULE_STEPS_MAX:
            return False
        if any(len(other) > depth and other[depth] == ALL_LEVELS for other in others):
            return True
        level = self._wanted[depth] if depth < len(self._wanted) else None
        # Behind its `#` the filter's topics may end at any level, or go on.
        is_rest = self._wanted[-1] == ALL_LEVELS and depth >= len(self._wanted) - 1
        if (level is None or (is_rest and depth)) and not any(len(other) == depth for other in others):
            return False
        if level is None and not is_rest:
            return True
        if is_rest or level == ONE_LEVEL:
            names = {other[depth] for other in others if len(other) > depth} - {ONE_LEVEL}
            choices = [_ANY_OTHER, *sorted(names)]
        else:
            assert level is not None, "a filter that does not end in # ends with its levels"
            choices = [level]
        return all(
            self.goes(
                depth + 1, [other for other in others if len(other) > depth and other[depth] in (name, ONE_LEVEL)]
            )
            for name in choices
        )
