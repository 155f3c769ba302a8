"""What a broker knows of operations over links, with real engines and both kinds of client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import clients
from broker.collectives.recorder import Outcome, Recorded
from broker.collectives.snapshots import GroupSnapshot
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread
from tests.clients.test_groups import PATIENCE_S, on_all_ranks

pytestmark = pytest.mark.usefixtures("links")

Until = Callable[[Callable[[GroupSnapshot], object]], GroupSnapshot]


@pytest.fixture
def broker() -> Iterator[ServingThread]:
    with ServingThread("tcp://127.0.0.1:0") as serving:
        yield serving


@pytest.fixture
def until(broker: ServingThread) -> Until:
    """Waits until what the broker shows of its group fits."""

    def shown() -> GroupSnapshot | None:
        groups = broker.server.state.own.groups
        found = [groups.snapshot(group, time.monotonic_ns()) for group in groups.by_number.values()]
        return found[0] if found else None

    def wait(fits: Callable[[GroupSnapshot], object]) -> GroupSnapshot:
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            snapshot = broker.call(shown)
            if isinstance(snapshot, GroupSnapshot) and fits(snapshot):
                return snapshot
            # The broker and the ranks need the processor as well.
            time.sleep(0.002)
        raise AssertionError(f"it does not come to that: {snapshot}")

    return wait


def recorded(snapshot: GroupSnapshot) -> list[Recorded]:
    return snapshot.recorder.recent(1000)


@pytest.mark.parametrize("elements", [10, 30_000, 300_000], ids=["small", "middle", "large"])
def test_each_operation_is_recorded_with_the_coming_of_all(connect: Connect, until: Until, elements: int) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        for _ in range(5):
            group.all_reduce(np.ones(elements, np.float32), op="max", timeout_s=PATIENCE_S)
        group.barrier(timeout_s=PATIENCE_S)
        return until(lambda snapshot: snapshot.recorder.operations == 6).schedule

    before_ns = time.monotonic_ns()
    assert on_all_ranks(connect, 3, work) == ["ring"] * 3
    found = recorded(until(lambda snapshot: True))
    assert [each.sequence for each in found] == [1, 2, 3, 4, 5, 6]
    for operation in found:
        assert operation.outcome is Outcome.DONE
        assert operation.claim is not None
        assert sorted(operation.arrived_ns) == [0, 1, 2]
        assert before_ns <= min(operation.arrived_ns.values())
        assert max(operation.arrived_ns.values()) <= operation.finished_ns <= time.monotonic_ns()
    assert found[0].claim is not None
    assert found[0].claim.describe() == f"all_reduce max float32 ({elements},)"
    assert {each.schedule for each in found} == {"ring"}


def test_who_is_waited_for_is_seen_while_the_others_wait(connect: Connect, until: Until) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        group.barrier(timeout_s=PATIENCE_S)
        shown = None
        if group.rank == 1:
            shown = until(
                lambda snapshot: (
                    [(each.missing_ranks, sorted(each.arrived_ns)) for each in snapshot.operations] == [((1,), [0, 2])]
                )
            ).operations[0]
        group.all_reduce(np.ones(20, np.int64), timeout_s=PATIENCE_S)
        until(lambda snapshot: not snapshot.operations and snapshot.recorder.operations == 2)
        return shown and (shown.sequence, shown.schedule, shown.claim)

    assert on_all_ranks(connect, 3, work) == [None, (2, "ring", "all_reduce sum int64 (20,)"), None]


def test_a_rank_that_computes_in_python_tells_of_its_work_all_the_same(broker: ServingThread, until: Until) -> None:
    buses = [clients.connect(broker.url, name=f"rank-{rank}") for rank in range(2)]
    groups: list[clients.Group] = [None, None]  # type: ignore[list-item]

    def join(rank: int) -> None:
        groups[rank] = buses[rank].group("dp", world_size=2, rank=rank, timeout_s=PATIENCE_S)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    seen = threading.Event()

    def look() -> None:
        until(lambda snapshot: snapshot.operations and snapshot.operations[0].missing_ranks == (1,))
        seen.set()

    work = groups[0].all_reduce(np.ones(5), timeout_s=PATIENCE_S, async_op=True)
    looking = threading.Thread(target=look)
    looking.start()
    end_s, number = time.monotonic() + PATIENCE_S, 1
    while not seen.is_set() and time.monotonic() < end_s:
        number = number * 3 % 1_000_003
    assert seen.is_set()
    groups[1].all_reduce(np.ones(5), timeout_s=PATIENCE_S)
    work.wait(PATIENCE_S)
    looking.join()
    for bus in buses:
        bus.close()


def test_a_mismatch_is_recorded_in_the_words_that_are_raised(connect: Connect, until: Until) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array = np.ones((4, 3) if group.rank else (6, 2), np.float32)
        with pytest.raises(clients.CollectiveMismatchError) as caught:
            group.broadcast(array, timeout_s=PATIENCE_S) if group.rank == 2 else group.all_reduce(array)
        until(lambda snapshot: snapshot.recorder.last_failure is not None)
        return str(caught.value)

    told = on_all_ranks(connect, 3, work)
    assert len(set(told)) == 1, told
    sentence = told[0]
    failure = until(lambda snapshot: True).recorder.last_failure
    assert failure is not None
    assert (failure.failure, failure.outcome) == (sentence, Outcome.MISMATCH)


def test_ranks_that_do_not_come_in_time_are_recorded_in_the_words_that_are_raised(
    connect: Connect, until: Until
) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        group.barrier(timeout_s=PATIENCE_S)
        if group.rank == 1:
            until(lambda snapshot: snapshot.recorder.last_failure is not None)
            return None
        with pytest.raises(clients.RankTimeoutError) as caught:
            group.barrier(timeout_s=1.0)
        return str(caught.value)

    first, _, third = on_all_ranks(connect, 3, work)
    failure = until(lambda snapshot: True).recorder.last_failure
    assert failure is not None
    assert {first, third} == {failure.failure}
    assert sorted(failure.arrived_ns) == [0, 2]


def test_a_rank_that_goes_at_once_has_told_of_its_last_operation(
    connect: Connect, until: Until, broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What comes after the end is waited for until the test says otherwise: who stays tells when it gets a processor.
    monkeypatch.setattr("broker.state.link_watches.LINK_REPORT_LAST_S", 10 * PATIENCE_S)
    groups = broker.server.state.own.groups

    def told_by() -> int:
        """How many have said something of the first operation."""
        ended = [watched.watch for of in groups._watches._ended.values() for watched in of]
        return max((len(watch._operations[1].heard) for watch in ended if 1 in watch._operations), default=0)

    def end() -> None:
        for group in groups.by_number.values():
            groups._watches.look(group, time.monotonic_ns() + int(20 * PATIENCE_S * 1e9))

    def work(group: clients.Group, bus: clients.Client) -> object:
        group.all_reduce(np.ones(8), timeout_s=PATIENCE_S)
        if group.rank == 0:
            bus.close()
            return None
        with pytest.raises(clients.GenerationChangedError):
            group.barrier(timeout_s=PATIENCE_S)
        # Else it is recorded already, as nothing is before the end but what both have told of.
        until(lambda snapshot: snapshot.recorder.operations or told_by() == 2)
        broker.call(end)
        return recorded(until(lambda _: True))[0]

    _, first = on_all_ranks(connect, 2, work)
    assert isinstance(first, Recorded)
    assert (first.generation, first.sequence, first.outcome) == (1, 1, Outcome.DONE)
    assert sorted(first.arrived_ns) == [0, 1]


def test_of_a_fast_loop_those_operations_are_recorded_of_which_all_tell(connect: Connect, until: Until) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array, count = np.ones(8, np.float32), 0
        while True:
            array[0] = group.rank == 0 and recent_enough()
            group.all_reduce(array, op="max", timeout_s=PATIENCE_S)
            count += 1
            if array[0]:
                return count

    def recent_enough() -> bool:
        nonlocal asked
        asked += 1
        return not asked % 500 and until(lambda snapshot: True).recorder.operations >= 200

    asked = 0
    counts = on_all_ranks(connect, 3, work)
    assert len(set(counts)) == 1
    for operation in recorded(until(lambda snapshot: True)):
        assert operation.outcome is Outcome.DONE
        assert sorted(operation.arrived_ns) == [0, 1, 2]
