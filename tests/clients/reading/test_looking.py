"""When a client looks at its lines before it sleeps."""

from __future__ import annotations

from types import ModuleType

import pytest

from broker.errors import InvalidValue
from clients.connection import environment
from clients.reading import looking
from clients.reading.incoming import Incoming
from clients.reading.lines import Lines
from clients.reading.looking import DOUBT_MAX, PAYS_NS, WAKE_NS
from tests.test_compiled import plain

LONGEST_NS = 50_000
PLAIN = plain("clients.reading.looking")


class Watched(Lines):
    """Lines that count how often they were looked at, and have something from a look on."""

    def __init__(self, empty_looks: float) -> None:
        super().__init__(Incoming(lambda *_: None, lambda *_: None, lambda *_, **__: None))
        self.empty_looks = empty_looks
        self.looks = 0

    def has_more(self) -> bool:
        self.looks += 1
        return self.looks > self.empty_looks


@pytest.fixture(params=[looking, PLAIN], ids=["as it is", "plain"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    return request.param  # type: ignore[no-any-return]


def short_waits_until_it_looks(subject: looking.Looking) -> int:
    """Sleeps briefly until the next look, which finds nothing."""
    for waits in range(2 * DOUBT_MAX):
        lines = Watched(float("inf"))
        assert not subject.look(lines)
        if lines.looks:
            return waits
        subject.slept(WAKE_NS, True)
    raise AssertionError("it never looks")


def test_it_looks_after_short_waits_for_a_while_and_finds_what_comes(module: ModuleType) -> None:
    subject, lines = module.Looking(10**9), Watched(100)
    assert not subject.look(lines)
    for _ in range(2):
        assert not lines.looks
        subject.slept(WAKE_NS, True)
    assert subject.look(lines)
    assert lines.looks == 101
    assert subject.look(Watched(0)), "what has paid goes on without another sleep"


def test_each_look_in_vain_doubles_the_waits_until_the_next(module: ModuleType) -> None:
    subject = module.Looking(LONGEST_NS)
    waits = [short_waits_until_it_looks(subject) for _ in range(12)]
    assert waits == [min(2 << power, DOUBT_MAX) for power in range(12)]


def test_looks_that_find_something_late_are_in_vain(module: ModuleType) -> None:
    subject = module.Looking(LONGEST_NS)
    for _ in range(2):
        subject.slept(WAKE_NS, True)
    for _ in range(100):
        subject.looked(PAYS_NS, True)
        assert subject.look(Watched(0))
    subject.looked(10 * PAYS_NS, True)
    assert not subject.look(Watched(0))
    assert short_waits_until_it_looks(subject) == 4


def test_a_long_wait_or_one_for_something_else_begins_anew(module: ModuleType) -> None:
    for waited_ns, found in ((LONGEST_NS + WAKE_NS, True), (0, False)):
        subject, lines = module.Looking(LONGEST_NS), Watched(0)
        subject.slept(0, True)
        subject.slept(waited_ns, found)
        subject.slept(0, True)
        assert not subject.look(lines)
        subject.slept(0, True)
        assert subject.look(lines)


def test_without_a_time_it_never_looks(module: ModuleType) -> None:
    subject, lines = module.Looking(0), Watched(0)
    for _ in range(10):
        subject.slept(0, True)
    assert not subject.look(lines)
    assert not lines.looks


def test_the_environment_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORBUS_LOOK_US", raising=False)
    assert environment.look_ns() == 0
    for text, ns in (("0", 0), ("1000", 1_000_000)):
        monkeypatch.setenv("TENSORBUS_LOOK_US", text)
        assert environment.look_ns() == ns
    for text in ("-1", "1001", "soon"):
        monkeypatch.setenv("TENSORBUS_LOOK_US", text)
        with pytest.raises(InvalidValue, match=f"TENSORBUS_LOOK_US.*{text}"):
            environment.look_ns()
