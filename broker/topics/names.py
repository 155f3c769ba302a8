"""Topics and topic filters: what may stand in them and what matches what.

A topic is a path of levels, `gradients/trainer-3`. A topic filter is a topic in which `+` stands for any one level and
`#`, as the last level, for the rest: `gradients/+`, `gradients/#`. The rules are those of MQTT 5.0, section 4.7, but
that no level is empty. Topics whose first level begins with `$` belong to the broker (`$sys`, `$inbox`): clients don't
publish there, and a filter that begins with a wildcard doesn't match them.
"""

from __future__ import annotations

import re

from broker.errors import InvalidValue
from broker.limits import TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX

SEPARATOR = "/"
ONE_LEVEL = "+"
ALL_LEVELS = "#"
RESERVED_PREFIX = "$"

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SHOWN_CHARACTERS = 64


def levels(name: str) -> list[str]:
    """Returns the levels of a topic or filter, `["gradients", "trainer-3"]`."""
    return name.split(SEPARATOR)


def is_filter(name: str) -> bool:
    """Tells whether a name has a wildcard, so that it can match more than one topic."""
    return ONE_LEVEL in name or ALL_LEVELS in name


def is_reserved(name: str) -> bool:
    """Tells whether a topic or filter lies among the broker's own topics, such as `$sys/pressure`."""
    return name.startswith(RESERVED_PREFIX)


def check_topic(topic: str, *, reserved: bool = False) -> str:
    """Returns the topic if one may publish there.

    Args:
        topic: the topic.
        reserved: allows the broker's own topics, whose first level begins with `$`.

    Raises:
        InvalidValue: the topic is empty, too long or too deep, has an empty level, a wildcard or a control character,
            or is reserved.
    """
    _check_levels("topic", topic)
    if is_filter(topic):
        raise InvalidValue("topic", topic, "has a wildcard (+ or #); wildcards are for subscriptions only")
    if is_reserved(topic) and not reserved:
        raise InvalidValue("topic", topic, "topics that begin with $ are the broker's; choose another first level")
    return topic


def check_filter(topic_filter: str) -> str:
    """Returns the topic filter if one may subscribe with it; a plain topic is a filter, a reserved one too.

    Raises:
        InvalidValue: the filter is empty, too long or too deep, has an empty level or a control character, or a
            wildcard that shares its level or, for `#`, is not the last level.
    """
    parts = _check_levels("topic filter", topic_filter)
    for number, level in enumerate(parts, start=1):
        if is_filter(level) and len(level) > 1:
            raise InvalidValue(
                "topic filter", topic_filter, f"level {number}, {level!r}: a wildcard stands alone in its level"
            )
        if level == ALL_LEVELS and number < len(parts):
            raise InvalidValue(
                "topic filter", topic_filter, f"# is level {number} of {len(parts)}; it must be the last"
            )
    return topic_filter


def matches(topic_filter: str, topic: str) -> bool:
    """Tells whether a checked filter matches a checked topic; `a/#` matches `a` too."""
    if is_reserved(topic) and topic_filter.startswith((ONE_LEVEL, ALL_LEVELS)):
        return False
    wanted, given = levels(topic_filter), levels(topic)
    for index, level in enumerate(wanted):
        if level == ALL_LEVELS:
            return True
        if index == len(given) or level not in (ONE_LEVEL, given[index]):
            return False
    return len(wanted) == len(given)


def covers(topic_filter: str, narrower: str) -> bool:
    """Tells whether a checked filter matches every topic that another one matches; `a/#` covers `a/+`."""
    if is_reserved(narrower) and topic_filter.startswith((ONE_LEVEL, ALL_LEVELS)):
        return False
    wanted, given = levels(topic_filter), levels(narrower)
    for index, level in enumerate(wanted):
        if level == ALL_LEVELS:
            return True
        if index == len(given) or given[index] == ALL_LEVELS or level not in (ONE_LEVEL, given[index]):
            return False
    return len(wanted) == len(given)


def _check_levels(what: str, name: str) -> list[str]:
    """Returns the levels of a name, after the checks that topics and filters share."""
    if not isinstance(name, str):
        raise InvalidValue(what, name, f"must be a str, not {type(name).__name__}")
    if not name:
        raise InvalidValue(what, name, "is empty")
    length_bytes = len(name.encode("utf-8", "surrogatepass"))
    if length_bytes > TOPIC_BYTES_MAX:
        shown = name[:_SHOWN_CHARACTERS] + "..."
        raise InvalidValue(what, shown, f"is {length_bytes} bytes of UTF-8; the limit is {TOPIC_BYTES_MAX}")
    if found := _FORBIDDEN.search(name):
        code = f"U+{ord(found.group()):04X}"
        raise InvalidValue(
            what, name, f"has {code} at character {found.start()}; control characters and surrogates are not allowed"
        )
    parts = levels(name)
    if "" in parts:
        raise InvalidValue(
            what, name, f"level {parts.index('') + 1} is empty; write no leading, trailing or double slash"
        )
    if len(parts) > TOPIC_LEVELS_MAX:
        raise InvalidValue(what, name, f"has {len(parts)} levels; the limit is {TOPIC_LEVELS_MAX}")
    return parts
