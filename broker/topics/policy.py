"""What holds for one topic: what it keeps, how it overflows, how its messages travel, what its work queues do.

`TopicPolicy` has a value for every setting. A `Declaration` sets some of them for the topics that its filter matches;
`broker/topics/declarations.py` makes the one out of the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Final

from broker.errors import InvalidValue
from broker.limits import (
    BATCH_BYTES,
    BATCH_BYTES_MAX,
    BATCH_WINDOW_NS,
    BATCH_WINDOW_US_MAX,
    DELIVERIES_BOUND_MAX,
    DELIVERIES_MAX,
    LEASE_S,
    LEASE_S_MAX,
    MESSAGE_BYTES_MAX,
    RETAINED_BYTES_MAX,
    RING_BYTES,
    RING_MESSAGES,
    RING_MESSAGES_MAX,
)
from broker.topics.names import check_filter, check_topic, is_reserved

DEAD_LETTERS: Final = "$dead/"
"""Where messages go that were delivered too often, unless a policy names another topic."""

PRESSURE: Final = "$sys/pressure"
"""Where the broker announces losses and waits."""

CONFIGURATION: Final = "configuration"
"""The origin of declarations that no client may replace."""


class Overflow(Enum):
    """What happens to messages for which a subscription has no room; see broker/topics/queues.py."""

    BLOCK = "block"
    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    LATEST = "latest"


OVERFLOWS: Final = tuple(each.value for each in Overflow)

Setting = bool | int | float | str


@dataclass(frozen=True, slots=True)
class TopicPolicy:
    """The settings of one topic, each with its value.

    Attributes:
        ring_messages: messages that are kept for replay.
        ring_bytes: bytes that are kept for replay.
        retain: True keeps the newest message however long it is; False keeps nothing; None keeps what the ring's bounds
            allow.
        overflow: the policy of subscriptions that name none.
        batch_bytes: a batch leaves when it holds so much; 0 never batches.
        batch_window_us: a batch leaves when its first message is so old, in microseconds.
        lane: of messages that name none.
        max_message_bytes: messages with a longer payload are refused; None takes any.
        acknowledge: whether members of a queue group acknowledge each message, so that what a member does not finish is
            given to another.
        lease_s: how long a member may take for a message, in seconds.
        max_deliveries: deliveries of one message before it goes to the dead-letter topic; 0 sets no bound.
        dead_letter: the topic for messages that were delivered too often; empty for `$dead/` and the topic's name.
    """

    ring_messages: int = RING_MESSAGES
    ring_bytes: int = RING_BYTES
    retain: bool | None = None
    overflow: str = "block"
    batch_bytes: int = BATCH_BYTES
    batch_window_us: int = BATCH_WINDOW_NS // 1000
    lane: str = "default"
    max_message_bytes: int | None = None
    acknowledge: bool = False
    lease_s: float = LEASE_S
    max_deliveries: int = DELIVERIES_MAX
    dead_letter: str = ""


SETTINGS: Final = tuple(entry.name for entry in fields(TopicPolicy))


@dataclass(frozen=True, slots=True)
class Declaration:
    """Settings for the topics that a filter matches.

    Attributes:
        filter: which topics.
        settings: the settings that it sets, checked with `check_declaration`.
        origin: `configuration`, or `declared by` and the client's name.
    """

    filter: str
    settings: Mapping[str, Setting]
    origin: str


def check_declaration(topic_filter: str, settings: Mapping[str, object]) -> dict[str, Setting]:
    """Returns the settings if one may declare them for the filter; settings that are None are left out.

    Raises:
        InvalidValue: the filter or a setting cannot be used; the text names it, and the nearest one for an unknown
            setting.
    """
    check_filter(topic_filter)
    if is_reserved(topic_filter) and not topic_filter.startswith(DEAD_LETTERS):
        problem = f"topics that begin with $ are the broker's; only {DEAD_LETTERS} takes a policy"
        raise InvalidValue("topic filter", topic_filter, problem)
    checked: dict[str, Setting] = {}
    for name, value in settings.items():
        if name not in _RULES:
            nearest = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.5)
            advice = f"did you mean {nearest[0]}?" if nearest else f"the settings are {', '.join(SETTINGS)}"
            raise InvalidValue("policy setting", name, f"unknown; {advice}")
        if value is None:
            continue
        if not isinstance(value, Setting) or not _RULES[name].accepts(value):
            raise InvalidValue(name, value, f"must be {_RULES[name].expected}")
        checked[name] = float(value) if name == "lease_s" else value
    return checked


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a setting may be: in words, and as a test."""

    expected: str
    accepts: Callable[[object], bool]


def _whole(least: int, most: int, unit: str) -> _Rule:
    def accepts(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return _Rule(f"a number of {unit} from {least} to {most}", accepts)


def _one_of(*words: str) -> _Rule:
    return _Rule(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def _is_lease(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LEASE_S_MAX


def _is_dead_letter(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return not value or bool(check_topic(value, reserved=value.startswith(DEAD_LETTERS)))
    except InvalidValue:
        return False


_BOOLEAN: Final = _Rule("True or False", lambda value: isinstance(value, bool))
_RULES: Final[Mapping[str, _Rule]] = {
    "ring_messages": _whole(0, RING_MESSAGES_MAX, "messages"),
    "ring_bytes": _whole(0, RETAINED_BYTES_MAX, "bytes"),
    "retain": _BOOLEAN,
    "overflow": _one_of(*OVERFLOWS),
    "batch_bytes": _whole(0, BATCH_BYTES_MAX, "bytes"),
    "batch_window_us": _whole(0, BATCH_WINDOW_US_MAX, "microseconds"),
    "lane": _one_of("control", "default", "bulk"),
    "max_message_bytes": _whole(1, MESSAGE_BYTES_MAX, "bytes"),
    "acknowledge": _BOOLEAN,
    "lease_s": _Rule(f"a number of seconds above 0 and up to {LEASE_S_MAX:g}", _is_lease),
    "max_deliveries": _whole(0, DELIVERIES_BOUND_MAX, "deliveries"),
    "dead_letter": _Rule("a topic without wildcards, or empty for $dead/ and the topic's name", _is_dead_letter),
}
