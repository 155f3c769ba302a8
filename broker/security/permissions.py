"""Who may do what: from roles and identities to the rights of one session.

Permissions   roles, and who has which: replaced as a whole when the configuration is read again
    .of(identity)
Rights        what one session may do
    .may(verb, target)     yes or no
    .refusal(verb, target) the words for whoever was refused
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from broker.errors import LimitExceeded
from broker.limits import RULES_MAX
from broker.security.identity import ADMIN, Identity
from broker.security.roles import READY_MADE, Role, Verb, filled_in
from broker.security.rules import NOTHING, Rules
from broker.topics.names import ALL_LEVELS

_SHOWN: Final = 8
"""Filters that an error names."""
_RIGHTS_KEPT: Final = 4096
"""Identities whose rights are kept, since many sessions come with the same."""
_WHOLE: Final = frozenset({Verb.SUBSCRIBE, Verb.RESPOND})
_PROVEN: Final = ("token", "certificate")


class Rights:
    """What somebody may do.

    Attributes:
        who: their name and roles, for people.
        limited: whether there is anything that they may not do.
        reads_all: whether they may subscribe to every topic of clients.
    """

    __slots__ = ("_rules", "limited", "reads_all", "who")

    def __init__(self, who: str, rules: Mapping[Verb, Rules] | None) -> None:
        """Args:
        who: in words.
        rules: by verb; a verb without rules is not allowed at all. None allows everything.
        """
        self.who = who
        self.limited = rules is not None
        self._rules: Mapping[Verb, Rules] = rules or {}
        self.reads_all = rules is None or self._rules.get(Verb.SUBSCRIBE, NOTHING).allows_all(ALL_LEVELS)

    def rules(self, verb: Verb) -> Rules | None:
        """What is allowed of a verb; None is everything."""
        return self._rules.get(verb, NOTHING) if self.limited else None

    def may(self, verb: Verb, target: str) -> bool:
        """Whether they may do something.

        Args:
            verb: what.
            target: the topic; for subscribe, respond and declare a checked filter; for join the group's name; for admin
                the view. A subscription may match what is denied, which is then not delivered; a declaration may not.
        """
        rules = self.rules(verb)
        if rules is None:
            return True
        if verb in _WHOLE:
            return rules.admits(target)
        return rules.allows_all(target) if verb is Verb.DECLARE else rules.allows(target)

    def refusal(self, verb: Verb, target: str) -> str:
        """Why they may not, and what they may."""
        rules = self.rules(verb) or NOTHING
        if not rules.allow:
            return f"{verb} {target!r}: not allowed to {self.who}, which has no {verb} permission at all"
        text = f"{verb} {target!r}: not allowed to {self.who}; it may {verb} {_listed(rules.allow)}"
        return f"{text} but not {_listed(rules.deny)}" if rules.deny else text

    def __repr__(self) -> str:
        return f"<Rights of {self.who}{'' if self.limited else ' everything'}>"


def _listed(filters: tuple[str, ...]) -> str:
    more = f" and {len(filters) - _SHOWN} more" if len(filters) > _SHOWN else ""
    return ", ".join(filters[:_SHOWN]) + more


EVERYTHING: Final = Rights("everybody", None)


@dataclass(frozen=True, slots=True)
class Permissions:
    """The roles of a broker, and who has them besides those that come with an identity.

    Without a configuration, whoever has no role may do everything, if nothing was proven or the kernel did it: so is
    a broker on one's own machine. A token or certificate without a role may do nothing.

    Attributes:
        configured: whether somebody has configured any; if so, whoever has no role may do nothing.
        roles: by name, the ready-made ones among them.
        everybody: names of the roles that every session has.
        members: names of roles by the proven name of who has them, and its tenant.
    """

    configured: bool = False
    roles: Mapping[str, Role] = field(default_factory=lambda: READY_MADE)
    everybody: tuple[str, ...] = ()
    members: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    _made: dict[tuple[str, tuple[str, ...]], Rights] = field(default_factory=dict, compare=False, repr=False)

    def of(self, identity: Identity) -> Rights:
        """What somebody may do."""
        added = self.members.get((identity.name, identity.tenant), ()) if identity.name else ()
        names = tuple(dict.fromkeys((*self.everybody, *identity.roles, *added)))
        if not self.configured and not names and identity.proof not in _PROVEN:
            return EVERYTHING
        key = identity.name, names
        rights = self._made.get(key)
        if rights is None:
            if len(self._made) >= _RIGHTS_KEPT:
                self._made.clear()
            rights = self._made[key] = self._make(identity.name, names)
        return rights

    def _make(self, name: str, names: tuple[str, ...]) -> Rights:
        roles = [self.roles[role] for role in names if role in self.roles]
        rules: dict[Verb, Rules] | None = None
        # Of an admin to whom nothing is denied, there is nothing to ask.
        if ADMIN not in names or any(role.deny for role in roles):
            rules = {verb: rule for verb in Verb if (rule := _joined(roles, verb, name)).allow}
        known = [role if role in self.roles else f"{role} (unknown)" for role in names]
        who = repr(name) if name else "a client that has proven no name"
        return Rights(f"{who} (roles: {', '.join(known) or 'none'})", rules)


def _joined(roles: list[Role], verb: Verb, name: str) -> Rules:
    """The rules of several roles; too many are cut off, of those that allow, and then nothing is allowed at all."""
    allow = [each for role in roles for each in filled_in(role.allow.get(verb, ()), name, denies=False)]
    deny = [each for role in roles for each in filled_in(role.deny.get(verb, ()), name, denies=True)]
    if len(allow) + len(deny) > RULES_MAX:
        return NOTHING
    return Rules(tuple(dict.fromkeys(allow)), tuple(dict.fromkeys(deny)))


def check_size(roles: Mapping[str, Role]) -> None:
    """Refuses roles of which one has more rules than a session may have.

    Raises:
        LimitExceeded: one has.
    """
    for role in roles.values():
        for verb in Verb:
            count = len(role.allow.get(verb, ())) + len(role.deny.get(verb, ()))
            if count > RULES_MAX:
                raise LimitExceeded("rules_max", count, RULES_MAX, "use filters that match more topics")
