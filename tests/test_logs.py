"""Logs: one line for each event, in both forms, and no more of one event than anybody reads."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import clients
from broker import logs
from broker.config import LogFormat
from broker.limits import LOG_EVENT_NAMES_MAX, LOG_EVENTS_MAX, LOG_INTERVAL_S

from .conftest import ROOT
from .daemon import Daemon

METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
EVENT = re.compile(r"[a-z_]+(\.[a-z_]+)+( \w+=%[sdrfgx])*(: [^%]+)?")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A logger of its own, whose lines are kept."""

    def __init__(self, form: LogFormat, clock: Clock | None = None) -> None:
        self.stream = io.StringIO()
        self.handler = logs.EventHandler(self.stream, form, logs.Limit(clock or Clock()))
        self.logger = logging.Logger("broker.somewhere", logging.DEBUG)
        self.logger.addHandler(self.handler)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines]


def log_calls() -> Iterator[tuple[Path, int, ast.expr]]:
    """Every call of a module's logger in the source, with its message."""
    for folder in ("broker", "clients"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                match node:
                    case ast.Call(ast.Attribute(ast.Name("log"), method), [message, *_]) if method in METHODS:
                        yield path, node.lineno, named(tree, message)


def named(tree: ast.Module, message: ast.expr) -> ast.expr:
    """What a variable was last set to before it is used, where a message is one."""
    if not isinstance(message, ast.Name):
        return message
    values = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and node.lineno < message.lineno
        and any(isinstance(target, ast.Name) and target.id == message.id for target in node.targets)
    ]
    return max(values, key=lambda value: value.lineno, default=message)


def test_every_log_call_names_an_event_and_gives_the_rest_as_keys_and_values() -> None:
    calls = list(log_calls())
    assert len(calls) > 30
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {ast.unparse(message)}"
        for path, line, message in calls
        if not (isinstance(message, ast.Constant) and EVENT.fullmatch(str(message.value)))
    ]
    assert wrong == []


def test_json_has_the_event_and_its_keys_as_fields_with_numbers_as_numbers() -> None:
    log = Log(LogFormat.JSON)
    log.logger.warning("session.closed id=%d name=%r share=%s cause=%s", 3, "a", 0.5, OSError("gone"))
    (found,) = log.objects()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", str(found.pop("time")))
    assert found == {
        "level": "warning", "logger": "broker.somewhere", "event": "session.closed", "id": 3, "name": "a",
        "share": 0.5, "cause": "gone",
    }  # fmt: skip


def test_words_without_a_key_are_the_text() -> None:
    log = Log(LogFormat.JSON)
    log.logger.error("zeromq.refused address=%s cause=%s: raise it with ulimit -n", "tcp://a", "full")
    log.logger.info("a.b %s after x=%d, 100 %%", "before", 7)
    told, mixed = log.objects()
    assert (told["address"], told["cause"], told["text"]) == ("tcp://a", "full", "raise it with ulimit -n")
    assert (mixed["event"], mixed["x"], mixed["text"]) == ("a.b", 7, "before after , 100 %")


def test_what_other_libraries_log_has_their_loggers_name_for_an_event() -> None:
    log = Log(LogFormat.JSON)
    log.logger.error("Task was destroyed but it is pending! %s", "x")
    (found,) = log.objects()
    assert (found["event"], found["text"]) == ("broker.somewhere", "Task was destroyed but it is pending! x")


def test_a_key_that_is_taken_is_kept_under_another_name() -> None:
    log = Log(LogFormat.JSON)
    log.logger.info("a.b level=%s event=%s", 9, "c")
    (found,) = log.objects()
    assert (found["event"], found["event_"], found["level"], found["level_"]) == ("a.b", "c", "info", 9)


@pytest.mark.parametrize("form", LogFormat)
def test_an_event_is_one_line_whatever_is_in_it(form: LogFormat) -> None:
    log = Log(form)
    log.logger.info("a.b name=%s", "one\ntwo\r\u2028three\x1b[31m\udcff")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.logger.exception("c.d name=%r", "x")
    assert len(log.stream.getvalue().splitlines()) == 2
    assert len(log.stream.getvalue().split("\n")) == 3
    assert "\x1b" not in log.stream.getvalue()
    assert "ValueError: first" in log.lines[1]
    assert "test_an_event_is_one_line" in log.lines[1]


def test_a_line_for_people_has_time_level_logger_and_the_event_as_it_was_logged() -> None:
    log = Log(LogFormat.CONSOLE)
    log.logger.info("session.closed id=%d name=%r", 3, "a")
    assert re.fullmatch(r"[\d-]+ [\d:,]+ INFO broker.somewhere session.closed id=3 name='a'", log.lines[0])


def test_arguments_that_do_not_fit_the_template_are_reported_and_harm_nobody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = Log(LogFormat.JSON)
    log.logger.info("a.b id=%d", "no number", "too many")
    log.logger.info("a.c id=%d", 1)
    assert [found["event"] for found in log.objects()] == ["a.c"]
    assert "a.b" in capsys.readouterr().err


def test_of_one_event_so_many_lines_come_in_an_interval_and_then_how_many_were_left_out() -> None:
    clock = Clock()
    log = Log(LogFormat.JSON, clock)
    for number in range(LOG_EVENTS_MAX + 7):
        log.logger.info("a.b number=%d", number)
    log.logger.info("c.d")
    events = [found["event"] for found in log.objects()]
    assert events == ["a.b"] * LOG_EVENTS_MAX + ["c.d"]
    clock.now += LOG_INTERVAL_S
    log.logger.info("c.d")
    assert [found["event"] for found in log.objects()[-2:]] == ["log.left_out", "c.d"]
    told = log.objects()[-2]
    assert (told["event_"], told["count"], told["level"]) == ("a.b", 7, "warning")
    log.logger.info("a.b number=%d", 0)
    assert log.objects()[-1]["event"] == "a.b"


def test_what_was_left_out_is_told_also_when_nothing_more_is_logged_and_once() -> None:
    clock = Clock()
    log = Log(LogFormat.CONSOLE, clock)
    for _ in range(LOG_EVENTS_MAX + 1):
        log.logger.info("a.b")
    log.handler.tell_left_out()
    assert len(log.lines) == LOG_EVENTS_MAX
    clock.now += LOG_INTERVAL_S
    log.handler.tell_left_out()
    log.handler.tell_left_out()
    assert [line.partition(" WARNING ")[2] for line in log.lines[LOG_EVENTS_MAX:]] == [
        "broker.logs log.left_out event=a.b count=1"
    ]


def test_at_the_end_it_is_told_before_its_time() -> None:
    log = Log(LogFormat.CONSOLE)
    for _ in range(LOG_EVENTS_MAX + 2):
        log.logger.info("a.b")
    log.handler.tell_left_out(at_the_end=True)
    assert log.lines[-1].endswith("log.left_out event=a.b count=2")


def test_a_quiet_event_gets_a_new_interval() -> None:
    clock = Clock()
    limit = logs.Limit(clock)
    for _ in range(3):
        assert all(limit.admits("a.b") for _ in range(LOG_EVENTS_MAX))
        clock.now += LOG_INTERVAL_S
    assert limit.left_out() == []


def test_events_of_too_many_names_are_counted_together() -> None:
    limit = logs.Limit(Clock())
    for number in range(LOG_EVENT_NAMES_MAX):
        assert limit.admits(f"name.{number}")
    admitted = sum(limit.admits(f"other.{number}") for number in range(LOG_EVENTS_MAX + 5))
    assert admitted == LOG_EVENTS_MAX
    assert limit.left_out(at_the_end=True) == [(logs.OTHERS, 5)]


def test_the_daemon_logs_json_when_it_is_told_to() -> None:
    with Daemon("--log-format", "json") as daemon:
        with clients.connect(daemon.url, name="logged"):
            pass
        daemon.terminate()
        lines = [json.loads(line) for line in daemon.errors.splitlines()]
    (closed,) = [line for line in lines if line["event"] == "session.closed"]
    assert (closed["name"], closed["level"], closed["logger"]) == ("logged", "info", "broker.server")
    assert isinstance(closed["id"], int)


def test_the_daemon_bounds_the_lines_of_one_event_and_says_so_at_its_end() -> None:
    with Daemon("--log-format", "json") as daemon:
        for _ in range(LOG_EVENTS_MAX + 20):
            with clients.connect(daemon.url):
                pass
        daemon.terminate()
        lines = [json.loads(line) for line in daemon.errors.splitlines()]
    closed = sum(line["event"] == "session.closed" for line in lines)
    left_out = sum(line["count"] for line in lines if line["event"] == "log.left_out")
    assert left_out > 0 or closed == LOG_EVENTS_MAX + 20
    assert closed + left_out == LOG_EVENTS_MAX + 20
