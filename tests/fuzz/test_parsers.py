"""Each parser takes whatever comes, at a price in proportion: the corpus, and some mutations of it.

`python -m tests.fuzz` takes as many as one likes.
"""

from __future__ import annotations

import threading

import pytest

from tests.fuzz import running
from tests.fuzz.parsers import PARSERS
from tests.fuzz.running import MEMORY_BYTES_FREE, MEMORY_RATIO_MAX, Report, corpus, run, shares_of

INPUTS = 2000
INPUTS_OF_A_BROKER = 200
"""A broker and its clients are made for each of them."""


@pytest.mark.parametrize("parser", PARSERS)
def test_a_parser_takes_whatever_comes(parser: str) -> None:
    assert len(corpus(parser)) >= 3
    inputs = INPUTS_OF_A_BROKER if parser == "broker" else INPUTS
    report = run(parser, inputs, seed=7, faults_max=5)
    assert report.faults == []
    assert report.inputs == inputs + len(corpus(parser))


def test_what_several_processes_have_found_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(data: bytes) -> None:
        if len(data) > 3:
            raise IndexError("off by one")

    monkeypatch.setattr(running, "PARSERS", {"frame": bad})
    found = Report.of([run("frame", share, seed=share, faults_max=3) for share in shares_of(5, 2)])
    assert shares_of(5, 2) == [3, 2]
    assert found.row.startswith(f"| frame | {found.inputs} | 6 | 0 |")
    assert Report.HEAD.splitlines()[1].count("|") == found.row.count("|")


def test_a_parser_that_raises_what_it_must_not_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(data: bytes) -> None:
        if len(data) > 3:
            raise IndexError("off by one")

    monkeypatch.setattr(running, "PARSERS", {"frame": bad})
    assert "IndexError: off by one" in run("frame", 10, seed=1).faults[0][1]


def test_a_parser_that_takes_too_much_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(data: bytes) -> None:
        assert bytearray(len(data) * (MEMORY_RATIO_MAX + 1) + MEMORY_BYTES_FREE)

    monkeypatch.setattr(running, "PARSERS", {"frame": greedy})
    assert "bytes of memory for" in run("frame", 1, seed=1).faults[0][1]


def test_a_parser_that_does_not_come_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(data: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr(running, "PARSERS", {"frame": endless})
    monkeypatch.setattr(running, "HANG_S", 1)
    assert "more than 1 s of the processor" in run("frame", 10, seed=1).faults[0][1]


def test_a_parser_that_waits_for_what_never_comes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "PARSERS", {"frame": lambda data: threading.Event().wait()})
    monkeypatch.setattr(running, "WAIT_S", 1)
    assert "Hang: 1024 inputs have taken more than 1 s" in run("frame", 10, seed=1).faults[0][1]
