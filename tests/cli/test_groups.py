"""`tensorbus stuck` and `groups` as real processes, beside ranks that are processes too and are stopped."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.admin.shapes import FailureView, MemberView
from broker.cli.connect import duration_text, ranks_text
from broker.cli.groups import _failed, _paragraph, _Stuck
from broker.cli.terminal import printable
from broker.collectives import ring, shm
from tests.clients.ranks import running
from tests.daemon import PATIENCE_S, Daemon, Process, run

SCHEDULES = [
    "star",
    pytest.param("shm", marks=pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")),
    pytest.param("ring", marks=pytest.mark.skipif(not ring.AVAILABLE, reason="the engine of links is not compiled")),
]

LATE_S = 0.2
"""Much more than ranks that are not late come behind one another, on a busy machine too."""


@contextmanager
def broker(tmp_path: Path, schedule: str) -> Iterator[Daemon]:
    """A broker whose groups on this host may take a schedule."""
    shared = "true" if schedule == "shm" else "false"
    # A rank that is stopped stays a member until it was looked at.
    settings = ("--shared-memory", shared, "--heartbeat-timeout-s", f"{2 * PATIENCE_S}")
    with Daemon(*settings, listen=("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus")) as daemon:
        yield daemon


def last_stuck(daemon: Daemon, named: int | None = None) -> tuple[str, list[dict[str, object]]]:
    """What `stuck` tells, in words and as JSON, once it tells of anything, or names a rank and no other.

    A rank that comes late or says nothing for a moment, because the machine is busy, may be named first, or as well.
    """
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        status, text, errors = run("stuck", daemon.url)
        assert errors == ""
        assert status in (0, 1)
        if status and (named is None or f" for rank {named}\n" in text):
            _, output, _ = run("stuck", "--url", daemon.url, "--json")
            told = [json.loads(line) for line in output.splitlines()]
            if told and (named is None or told[0]["missing_ranks"] == [named]):
                return text, told
        # Each process that asks takes a processor for as long.
        time.sleep(0.1)
    raise AssertionError("nothing is stuck")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("elements", [10, 1_000_000], ids=["small", "large"])
def test_a_rank_that_is_stopped_in_the_middle_is_named_with_its_process(
    tmp_path: Path, schedule: str, elements: int
) -> None:
    with broker(tmp_path, schedule) as daemon:
        ranks = [
            Process(daemon.url, str(rank), "3", str(elements), schedule, module="tests.system.rank")
            for rank in range(3)
        ]
        try:
            for rank in ranks:
                assert rank.read_line().startswith("joined")
                assert rank.read_line() == "running"
            ranks[1].signal(signal.SIGSTOP)
            text, (told,) = last_stuck(daemon, 1)
            assert (told["group"], told["generation"], told["schedule"]) == ("ranks", 1, schedule)
            assert told["missing_ranks"] == [1]
            assert set(told["arrived_ranks"]) >= {0, 2}  # type: ignore[call-overload]
            (missing,) = told["missing"]  # type: ignore[misc]
            assert (missing["rank"], missing["name"], missing["process"]) == (1, "rank-1", ranks[1].pid)
            assert missing["silent_s"] > 0
            pattern = (
                r"group ranks, generation 1: operation \d+, (all_reduce|broadcast) .+ \(" + schedule + r"\), "
                r"has waited .+ for rank 1\n  came     ranks .+\n"
                rf"  missing  rank 1: rank-1, process {ranks[1].pid} on .+, last heard of .+ ago\n"
            )
            assert re.fullmatch(pattern, text), text
            ranks[1].signal(signal.SIGCONT)
        finally:
            for rank in ranks:
                rank.close()


def groups_told(daemon: Daemon, operations: int) -> list[dict[str, object]]:
    """What `groups` tells as JSON, once it tells of so many operations: over links ranks tell of them in a moment."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        status, output, errors = run("groups", daemon.url, "--json")
        assert (status, errors) == (0, "")
        groups = [json.loads(line) for line in output.splitlines()]
        if sum(group["recorded_operations"] for group in groups) >= operations:
            return groups
    raise AssertionError(f"{operations} operations are not told of: {groups}")


def late_loop(daemon: Daemon, rank: int, steps: int, schedule: str) -> clients.Client:
    """A rank of three that makes some steps; rank 2 comes LATE_S late to each."""
    bus = clients.connect(daemon.url, name=f"trainer-{rank}")
    group = bus.group("dp", world_size=3, rank=rank, timeout_s=PATIENCE_S, schedule=schedule)
    array = np.ones(1000, np.float32)
    for step in range(steps):
        bus.publish(f"metrics/trainer-{rank}/loss", {"step": step})
        if rank == 2:
            time.sleep(LATE_S)
        group.all_reduce(array, timeout_s=PATIENCE_S)
    return bus


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_shows_members_and_first_of_all_the_straggler(tmp_path: Path, schedule: str) -> None:
    with broker(tmp_path, schedule) as daemon, running() as start:
        buses = [
            future.result(PATIENCE_S)
            for future in [start(lambda r=r: late_loop(daemon, r, 20, schedule)) for r in range(3)]
        ]
        (group,) = groups_told(daemon, 20)
        assert (group["name"], group["generation"], group["world_size"]) == ("dp", 1, 3)
        assert (group["ranks"], group["missing_ranks"], group["schedule"]) == ([0, 1, 2], [], schedule)
        assert (group["recorded_operations"], group["operations"], group["last_outcome"]) == (20, [], "done")
        first = group["stragglers"][0]
        assert (first["rank"], first["name"]) == (2, "trainer-2")
        # The others come later than they might when they get no processor, but not each time by so much.
        assert first["lateness_s"] > 0.04
        last = group["recent"][-1]
        assert (last["claim"], last["schedule"], last["bytes"]) == ("all_reduce sum float32 (1000,)", schedule, 4000)
        assert sorted(last["behind_s"]) == ["0", "1", "2"]
        assert group["members"][0]["last_message"]["text"] == '{"step":19}'
        _, table, _ = run("groups", daemon.url)
        head, row = table.splitlines()
        assert head.split() == ["GROUP", "GENERATION", "RANKS", "SCHEDULE", "IN", "PROGRESS", "STRAGGLERS", "LAST"]
        assert re.match(rf"dp +1 +0-2 of 3 +{schedule} +- +2 by .+ of 20\).* done .+ ago$", row)
        for bus in buses:
            bus.close()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_last_mismatch_is_told_in_one_sentence_with_the_claims(tmp_path: Path, schedule: str) -> None:
    def rank(number: int) -> clients.Client:
        bus = clients.connect(daemon.url)
        group = bus.group("dp", world_size=2, rank=number, timeout_s=PATIENCE_S, schedule=schedule)
        with pytest.raises(clients.CollectiveMismatchError):
            group.all_reduce(np.ones(4 + number, np.float32), op="sum", timeout_s=PATIENCE_S)
        return bus

    sentence = (
        "group 'dp': operation 1 does not match on all ranks: rank 0: all_reduce sum float32 (4,); "
        "rank 1: all_reduce sum float32 (5,)\n"
    )
    with broker(tmp_path, schedule) as daemon, running() as start:
        buses = [future.result(PATIENCE_S) for future in [start(lambda r=r: rank(r)) for r in range(2)]]
        groups_told(daemon, 1)
        for command, words in (("stuck", "nothing is stuck in 1 group\n"), ("groups", "")):
            status, output, _ = run(command, daemon.url)
            assert status == 0
            assert re.search(r"^failed .+ ago: " + re.escape(sentence), output, re.MULTILINE)
            assert output.endswith(words)
        for bus in buses:
            bus.close()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_mismatch_over_which_all_ranks_have_ended_is_told_all_the_same(tmp_path: Path, schedule: str) -> None:
    def rank(number: int) -> str:
        with clients.connect(daemon.url) as bus:
            group = bus.group("dp", world_size=2, rank=number, timeout_s=PATIENCE_S, schedule=schedule)
            for _ in range(3):
                group.all_reduce(np.ones(4, np.float32), timeout_s=PATIENCE_S)
            if number == 0:
                groups_told(daemon, 3)
            with pytest.raises(clients.CollectiveMismatchError) as error:
                group.all_reduce(np.ones(4 + number, np.float32), op="sum", timeout_s=PATIENCE_S)
            # Who leaves before the other one has heard of the mismatch is what that one hears of.
            heard.wait(PATIENCE_S)
            return str(error.value)

    heard = threading.Barrier(2)

    with broker(tmp_path, schedule) as daemon, running() as start:
        first, second = (future.result(PATIENCE_S) for future in [start(lambda r=r: rank(r)) for r in range(2)])
        assert first == second
        words = rf"failed .+ ago: {re.escape(first)}\n"
        told, end_s = "", time.monotonic() + PATIENCE_S
        while not told.endswith("nothing is stuck in 0 groups\n"):
            assert time.monotonic() < end_s, told
            told = run("stuck", daemon.url)[1]
        assert re.fullmatch(words + "nothing is stuck in 0 groups\n", told)
        assert re.fullmatch(words, run("groups", daemon.url)[1])
        assert run("stuck", daemon.url, "--json")[:2] == (0, "")


def test_a_group_that_does_not_form_is_stuck_too(tmp_path: Path) -> None:
    with broker(tmp_path, "star") as daemon, running() as start, clients.connect(daemon.url) as bus:
        joining = start(lambda: bus.group("dp", world_size=3, rank=1, timeout_s=PATIENCE_S))
        text, (told,) = last_stuck(daemon)
        assert (told["waits_for"], told["missing_ranks"], told["arrived_ranks"]) == ("members", [0, 2], [1])
        assert re.match(r"group dp has not formed: it has waited .+ for ranks 0, 2\n  there    rank 1\n", text)
        daemon.terminate()
        with pytest.raises(clients.BrokerError):
            joining.result(PATIENCE_S)


def test_without_groups_there_is_little_to_say(tmp_path: Path) -> None:
    with broker(tmp_path, "star") as daemon:
        assert run("stuck", daemon.url) == (0, "nothing is stuck in 0 groups\n", "")
        assert run("stuck", daemon.url, "--json") == (0, "", "")
        assert run("groups", daemon.url) == (0, "", "no groups\n")
        assert run("groups", daemon.url, "--json") == (0, "", "")


@pytest.mark.parametrize("command", ["stuck", "groups"])
def test_without_a_broker_it_says_so_and_that_is_not_the_same_as_stuck(command: str) -> None:
    status, output, errors = run(command, "tcp://127.0.0.1:1")
    assert (status, output) == (3, "")
    assert errors.startswith("tensorbus: ")
    assert "tcp://127.0.0.1:1" in errors


def test_ranks_and_durations_in_few_words() -> None:
    assert ranks_text([]) == ""
    assert ranks_text([7, 0, 1, 2, 9, 10]) == "0-2, 7, 9-10"
    assert [duration_text(each) for each in (2e-5, 0.0123, 1.5, 125.9, 7260)] == [
        "20 us", "12.3 ms", "1.50 s", "2 min 5 s", "2 h 1 min",
    ]  # fmt: skip


def test_names_of_strangers_play_no_tricks_on_a_terminal() -> None:
    assert printable("trainer\x1b[2J\n0") == "trainer?[2J?0"


def test_what_is_stuck_or_has_failed_is_told_with_its_tenant() -> None:
    missing = MemberView(1, 7, "rank-1", "here", 12, 0.5, 0.0, None)
    stuck = _Stuck(
        "dp", 2, "operation", 1.0, 1.0, [0], [1], [missing], 3, "star", "all_reduce sum float32 (4,)", "vision"
    )
    assert _paragraph(stuck)[0].startswith("group dp of vision, generation 2: operation 3, all_reduce ")
    stuck.waits_for = "members"
    assert _paragraph(stuck)[0] == "group dp of vision has not formed: it has waited 1.00 s for rank 1"
    failure = FailureView("mismatch", "ranks 0-1 differ", 2.0)
    assert _failed(failure, "vision") == "failed 2.00 s ago (tenant vision): ranks 0-1 differ"
    assert _failed(failure, "") == "failed 2.00 s ago: ranks 0-1 differ"
