"""What a role allows and denies, and the roles that every broker has.

In a role's filters `{name}` is the name of whom the role is given to, so that one role does for all ranks:

    publish: +/{name}/#      lets trainer-3 publish to gradients/trainer-3 and metrics/trainer-3/loss, and nowhere else

It stands for a whole level. For somebody whose name is none that a level may have, or who has none, a filter with it
allows nothing and denies as if it were `+`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from broker.errors import InvalidValue
from broker.security.identity import ADMIN
from broker.topics.names import ONE_LEVEL, SEPARATOR, check_filter, is_filter, is_reserved, levels

NAME: Final = "{name}"


class Verb(StrEnum):
    """What somebody may be allowed to do; each is about topics, but for two."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    REQUEST = "request"
    RESPOND = "respond"
    JOIN = "join"
    """Groups and queue groups, by their names."""
    DECLARE = "declare"
    """Policies of topics."""
    ADMIN = "admin"
    """To be shown what the broker knows, by the view: `server`, `sessions`, `topics`, `groups`; `tenants/<name>` is to
    go into another tenant."""


Filters = Mapping[Verb, tuple[str, ...]]
_NONE: Final[Filters] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Role:
    """Rules that go together.

    Attributes:
        allow: by verb, filters of what is allowed.
        deny: by verb, filters of what is not, whatever allows it.
    """

    allow: Filters = field(default_factory=lambda: _NONE)
    deny: Filters = field(default_factory=lambda: _NONE)


def check_rule(topic_filter: str) -> str:
    """Returns the filter of a rule if it can be one.

    Raises:
        InvalidValue: it is no topic filter, or `{name}` shares its level.
    """
    if not isinstance(topic_filter, str):
        raise InvalidValue("topic filter", topic_filter, "must be a text")
    for level in levels(topic_filter):
        if NAME in level and level != NAME:
            raise InvalidValue("topic filter", topic_filter, f"{NAME} stands alone in its level")
    check_filter(topic_filter)
    return topic_filter


def filled_in(filters: tuple[str, ...], name: str, *, denies: bool) -> tuple[str, ...]:
    """The filters of rules for somebody of a name."""
    if not _can_be_level(name):
        if not denies:
            return tuple(topic_filter for topic_filter in filters if NAME not in topic_filter)
        name = ONE_LEVEL
    return tuple(topic_filter.replace(NAME, name) for topic_filter in filters)


def _can_be_level(name: str) -> bool:
    if not name or SEPARATOR in name or is_filter(name) or is_reserved(name):
        return False
    try:
        check_filter(name)
    except InvalidValue:
        return False
    return True


def _allowing(**filters: tuple[str, ...]) -> Role:
    return Role({Verb[verb.upper()]: allowed for verb, allowed in filters.items()})


_OWN: Final = (f"+/{NAME}/#",)
_ALL: Final = ("#",)
_ALL_TOPICS: Final = ("#", "$dead/#")
_ALL_THERE_IS: Final = ("#", "$sys/#", "$dead/#")
_READ: Final = ("#", "$sys/groups/#", "$sys/pressure")

READY_MADE: Final[Mapping[str, Role]] = MappingProxyType(
    {
        "trainer": _allowing(
            publish=(*_OWN, "digests/#"), subscribe=_READ, request=_ALL, respond=_OWN, join=_ALL,
        ),
        "parameter-server": _allowing(
            publish=(*_OWN, "parameters/#"), subscribe=_READ, request=_ALL, respond=(*_OWN, "parameters/#"),
            join=_ALL, declare=("parameters/#",),
        ),
        "monitor": _allowing(
            publish=(*_OWN, "tensorbus/doctor/#"), subscribe=("#", "$sys/#"),
            admin=("server", "sessions", "topics", "groups"),
        ),
        ADMIN: _allowing(
            publish=_ALL, subscribe=_ALL_THERE_IS, request=_ALL, respond=_ALL, join=_ALL,
            declare=_ALL_TOPICS, admin=_ALL,
        ),
    }
)  # fmt: skip
"""Whoever reads may read all of its tenant; what they may say is narrow."""


def role_of(name: str) -> str:
    """What somebody is by the name, without a number at its end: `trainer-3` is a `trainer`."""
    return re.sub(r"-\d+$", "", name)
