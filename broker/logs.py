"""Logs: one line for each event, for people or for machines, and no more of one event than anybody reads.

The code logs an event's name and what belongs to it, as a template and its arguments:

    log.warning("arena.refused session=%r cause=%s", name, error)

    console   2026-11-29 18:40:00,123 WARNING broker.state.sharing arena.refused session='a' cause=no descriptor is left
    json      {"time":"2026-11-29T18:40:00.123456Z","level":"warning","logger":"broker.state.sharing",
               "event":"arena.refused","session":"a","cause":"no descriptor is left"}

A line stays one line whatever a name or a cause has in it. What other libraries log has the name of its logger for an
event. Of one event at most LOG_EVENTS_MAX lines come in LOG_INTERVAL_S; how many more there were is an event of its
own, `log.left_out`.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple, TextIO

import msgspec

from broker.config import LogFormat
from broker.limits import LOG_EVENT_NAMES_MAX, LOG_EVENTS_MAX, LOG_INTERVAL_S
from broker.masking import masked

LEFT_OUT: Final = "log.left_out event=%s count=%d"
OTHERS: Final = "log.others"
"""Stands for events when more names have come than are told apart."""
_CONSOLE: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
_EVENT: Final = re.compile(r"[a-z_]+(?:\.[a-z_]+)+(?=[:\s]|$)")
_PLACE: Final = re.compile(r"(?:(\w+)=)?(%[-+ #0]*\d*(?:\.\d+)?[a-zA-Z])|%%")
_ENDS_OF_LINES: Final = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Which JSON allows in a text, and some readers take for the end of a line."""
_RESERVED: Final = frozenset({"time", "level", "logger", "event", "text", "exception"})


class _Template(NamedTuple):
    """What the code says of an event.

    Attributes:
        event: its name.
        keys: of each argument; None where it is a part of the text.
        text: what is left without the keys and their arguments.
    """

    event: str
    keys: tuple[str | None, ...]
    text: str


@lru_cache(maxsize=1024)
def _template(message: str) -> _Template | None:
    """None when a message does not begin with the name of an event."""
    event = _EVENT.match(message)
    if event is None:
        return None
    keys: list[str | None] = []

    def take(place: re.Match[str]) -> str:
        if place[2] is None:
            return place[0]
        keys.append(place[1])
        return "" if place[1] else place[2]

    text = _PLACE.sub(take, message[event.end() :].lstrip(": "))
    return _Template(event[0], tuple(keys), " ".join(text.split()).lstrip(": "))


def event_of(record: logging.LogRecord) -> str:
    """The name of the event that a record is; of what other libraries say, their logger's name."""
    template = _template(record.msg) if isinstance(record.msg, str) else None
    return record.name if template is None else template.event


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What a record says, by name: `event`, the template's keys, and `text` for what has no key."""
    template = _template(record.msg) if isinstance(record.msg, str) else None
    values = record.args or ()
    if template is None or isinstance(values, Mapping) or len(values) != len(template.keys):
        return {"event": event_of(record), "text": record.getMessage()}
    pairs = list(zip(template.keys, values, strict=True))
    found: dict[str, object] = {"event": template.event}
    for key, value in pairs:
        if key is not None:
            plain = value if isinstance(value, bool | int | float) else str(value)
            found[f"{key}_" if key in _RESERVED else key] = plain
    if template.text:
        found["text"] = template.text % tuple(value for key, value in pairs if key is None)
    return found


class _Console(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__(_CONSOLE)

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        line = self.formatMessage(record)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            where = traceback.extract_tb(error.__traceback__)[-1:]
            places = "".join(f" at {frame.filename}:{frame.lineno} in {frame.name}" for frame in where)
            line += f" exception={type(error).__name__}: {error}{places}"
        return _on_one_line(line)


class _Json(logging.Formatter):
    """Lines for machines: an object each."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        line: dict[str, object] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **fields_of(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        text = msgspec.json.encode({key: _encodable(value) for key, value in line.items()}).decode()
        return text.translate(_ENDS_OF_LINES)


def _encodable(value: object) -> object:
    """Without what has no place in UTF-8, such as halves of a file's name that is none."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _on_one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class Limit:
    """How many lines of each event have come in its interval, and how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._intervals: dict[str, list[float]] = {}
        """By event, when its interval ends, how many came in it, and how many were left out."""

    def admits(self, event: str) -> bool:
        """Whether another line of an event may be written; one that may not is counted."""
        now = self._clock()
        interval = self._intervals.get(event)
        if interval is None:
            if len(self._intervals) >= LOG_EVENT_NAMES_MAX and event != OTHERS:
                return self.admits(OTHERS)
            interval = self._intervals[event] = [now + LOG_INTERVAL_S, 0, 0]
        elif now >= interval[0] and not interval[2]:
            interval[:] = [now + LOG_INTERVAL_S, 0, 0]
        interval[1] += 1
        if interval[1] <= LOG_EVENTS_MAX:
            return True
        interval[2] += 1
        return False

    def left_out(self, *, at_the_end: bool = False) -> list[tuple[str, int]]:
        """Events of which lines were left out in an interval that is over, and how many; each is told once."""
        now = self._clock()
        due = {
            event: int(interval[2])
            for event, interval in self._intervals.items()
            if interval[2] and (at_the_end or now >= interval[0])
        }
        for event in due:
            del self._intervals[event]
        return list(due.items())


class EventHandler(logging.StreamHandler[TextIO]):
    """Writes events to a stream, a line each."""

    def __init__(self, stream: TextIO, form: LogFormat, limit: Limit | None = None) -> None:
        super().__init__(stream)
        self._limit = limit or Limit()
        self.setFormatter(_Json() if form is LogFormat.JSON else _Console())

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without the secret of any token, wherever that comes from."""
        return masked(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Writes an event, unless there were too many of its name."""
        self._tell(self._limit.left_out())
        if self._limit.admits(event_of(record)):
            super().emit(record)

    def tell_left_out(self, *, at_the_end: bool = False) -> None:
        """Says what was left out, as far as its interval is over; to be called now and then, and at the end."""
        self.acquire()
        try:
            self._tell(self._limit.left_out(at_the_end=at_the_end))
        finally:
            self.release()

    def _tell(self, left_out: list[tuple[str, int]]) -> None:
        for event, count in left_out:
            super().emit(logging.makeLogRecord({
                "name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": LEFT_OUT,
                "args": (event, count),
            }))  # fmt: skip


def start(stream: TextIO, level: str, form: LogFormat) -> EventHandler:
    """From here on everything that is logged goes to a stream.

    Args:
        stream: as a rule the standard error.
        level: the least severe records that are written.
        form: of the lines.
    """
    handler = EventHandler(stream, form)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    return handler
