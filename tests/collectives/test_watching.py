"""What the broker sees on a board: operations of real engines, and that rubbish on it does no harm."""

from __future__ import annotations

import ctypes
import random
import signal
import statistics
import threading
import time

import msgspec
import numpy as np
import pytest

from broker.collectives import shm
from broker.collectives.claims import Claim, CollectiveKind, ReduceOp
from broker.collectives.reading import LOG_ENTRIES, Reader
from broker.collectives.recorder import Outcome, Recorder
from broker.collectives.watching import BoardWatch
from broker.errors import InvalidValue
from broker.ids import Rank
from tests.collectives.boards import PATIENCE_S, SECOND_NS, STAGE_BYTES, end_board, new_board, new_process, on_threads
from tests.collectives.processes import ATTEMPTS

pytestmark = pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")

RANKS = [Rank(4), Rank(7), Rank(9)]
LONG = 3 << 20


class Watched:
    """A board of three positions, of ranks 4, 7 and 9, and what is seen there."""

    def __init__(self) -> None:
        self.memory = new_board(3)
        self.recorder = Recorder(10)
        self.reader = Reader(self.memory, self.memory.address, 3)
        self.watch = BoardWatch(self.reader, "dp", 2, RANKS, 10, time.monotonic_ns())

    def look(self) -> None:
        self.watch.look(self.recorder, time.monotonic_ns())

    def wait_for_others(self, position: int, number: int) -> None:
        """Returns when all positions but one have begun an operation."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            standings = self.reader.standings()
            if all(each.begun >= number for other, each in enumerate(standings) if other != position):
                return
            time.sleep(0.001)
        raise AssertionError(f"operation {number} has not begun: {standings}")

    def wait_until_said(self, positions: set[int], number: int) -> None:
        """Returns when these positions have told the others that they have come to an operation."""
        end_s = time.monotonic() + PATIENCE_S
        while any(self.reader.standings()[position].arrived < number for position in positions):
            assert time.monotonic() < end_s, f"operation {number} has not been reached: {self.reader.standings()}"

    def wait_for(self, arrived: int) -> None:
        """Returns when so many ranks have come to the one operation in progress."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            self.look()
            if any(len(each.arrived_ns) == arrived for each in self.watch.operations()):
                return
            time.sleep(0.005)
        raise AssertionError(f"{arrived} ranks have not come: {self.watch.operations()}")


def plan_of(elements: int, claim: Claim | None = None) -> shm.Plan:
    claim = claim or Claim(CollectiveKind.ALL_REDUCE, ReduceOp.SUM, None, "float32", (elements,), 1)
    return shm.Plan(
        CollectiveKind.ALL_REDUCE, msgspec.msgpack.encode(claim), 3,
        op=ReduceOp.SUM, dtype="float32", array_bytes=4 * elements,
    )  # fmt: skip


def run(engine: shm.Engine, elements: int, timeout_s: float = PATIENCE_S, claim: Claim | None = None) -> int:
    array = np.ones(elements, np.float32)
    return engine.run(shm.Task(plan_of(elements, claim), array, array, int(timeout_s * 1e9)))


@pytest.mark.parametrize("elements", [10, 100_000], ids=["small", "large"])
def test_operations_that_are_done_are_recorded_with_claim_and_arrivals(elements: int) -> None:
    watched, before_ns = Watched(), time.monotonic_ns()

    def work(engine: shm.Engine, position: int) -> None:
        for number in range(1, 6):
            if position == 1:
                watched.wait_for_others(1, number)
            run(engine, elements)

    on_threads(3, work, watched.memory)
    watched.look()
    recent = watched.recorder.recent(10)
    assert [each.sequence for each in recent] == [1, 2, 3, 4, 5]
    for operation in recent:
        assert (operation.outcome, operation.generation, operation.schedule) == (Outcome.DONE, 2, "shm")
        assert operation.claim is not None
        assert operation.claim.describe() == f"all_reduce sum float32 ({elements},)"
        assert list(operation.arrived_ns)[-1] == 7
        assert sorted(operation.arrived_ns) == RANKS
        assert before_ns <= min(operation.arrived_ns.values()) <= time.monotonic_ns()
        if elements > 1024:
            assert max(operation.arrived_ns.values()) <= operation.finished_ns <= time.monotonic_ns()
        else:
            assert operation.finished_ns == 0
    assert watched.watch.operations() == ()


@pytest.mark.parametrize("elements", [10, 100_000], ids=["small", "large"])
def test_a_straggler_is_as_late_as_it_says_itself(elements: int) -> None:
    watched, steps = Watched(), 20
    came_ns: list[dict[int, int]] = [{} for _ in range(steps)]

    def work(engine: shm.Engine, position: int) -> None:
        for step in range(steps):
            if position == 1:
                watched.wait_for_others(1, step + 1)
                # What it does while the others wait.
                threading.Event().wait(0.05)
                watched.look()
            came_ns[step][position] = time.monotonic_ns()
            run(engine, elements)

    on_threads(3, work, watched.memory)
    watched.look()
    # Others come later than they might when they get no processor, but not by so much.
    straggler, *others = watched.recorder.stragglers()
    assert all(2 * each.lateness_ns < straggler.lateness_ns for each in others)
    assert (straggler.rank, straggler.late_operations, straggler.operations) == (7, steps, steps)
    own = [came[1] - min(came[0], came[2]) for came in came_ns]
    assert straggler.lateness_ns == pytest.approx(statistics.median(own), rel=0.1)


def test_of_more_operations_than_the_log_has_the_last_are_recorded() -> None:
    watched = Watched()

    def work(engine: shm.Engine, position: int) -> None:
        for _ in range(100):
            run(engine, 10)

    on_threads(3, work, watched.memory)
    watched.look()
    assert [each.sequence for each in watched.recorder.recent(100)] == list(range(101 - LOG_ENTRIES, 101))


def test_who_has_come_and_who_has_not_is_seen_while_they_wait() -> None:
    watched = Watched()
    engines = [shm.Engine(watched.memory.descriptor, watched.memory.size_bytes, 3, position) for position in range(3)]
    arrays = [np.ones(10, np.float32) for _ in range(3)]
    tasks = [shm.Task(plan_of(10), array, array, 60 * SECOND_NS) for array in arrays]
    engines[2].submit(tasks[2])
    watched.wait_for(1)
    engines[0].submit(tasks[0])
    watched.wait_for(2)
    (operation,) = watched.watch.operations()
    assert (operation.sequence, operation.schedule, operation.claim) == (1, "shm", "all_reduce sum float32 (10,)")
    assert list(operation.arrived_ns) == [9, 4]
    assert operation.missing_ranks == (7,)
    # A rank writes that it comes into its log before it says so to the others, which counts as moving too.
    watched.wait_until_said({0, 2}, 1)
    watched.look()
    moved_ns = watched.watch.operations()[0].moved_ns
    watched.look()
    assert watched.watch.operations()[0].moved_ns == moved_ns
    engines[1].submit(tasks[1])
    for engine, task in zip(engines, tasks, strict=True):
        assert engine.wait(task, PATIENCE_S) == shm.Outcome.COMMITTED
        engine.close()
    watched.look()
    assert watched.watch.operations() == ()
    assert [each.outcome for each in watched.recorder.recent(10)] == [Outcome.DONE]


def test_a_rank_that_does_not_come_fails_the_operation_in_the_words_that_its_ranks_raise() -> None:
    watched = Watched()

    def work(engine: shm.Engine, position: int) -> int:
        return run(engine, 10, timeout_s=1.0) if position else 0

    assert on_threads(3, work, watched.memory)[1:] == [shm.Outcome.MISSING] * 2
    watched.look()
    (failed,) = watched.recorder.recent(10)
    assert failed.outcome is Outcome.MISSING
    assert failed.failure == "group 'dp': operation 1: after 1 s ranks [4] had not arrived"
    assert watched.recorder.last_failure == failed


def test_those_who_try_again_after_a_failure_wait_for_the_same_rank() -> None:
    watched, go_on = Watched(), threading.Event()

    def work(engine: shm.Engine, position: int) -> None:
        if not position:
            go_on.wait(PATIENCE_S)
            return
        for _ in range(3):
            run(engine, 10, timeout_s=0.05)
        run(engine, 10, timeout_s=4.0 if position == 1 else PATIENCE_S)

    on_thread = threading.Thread(target=on_threads, args=(3, work, watched.memory))
    on_thread.start()
    end_s = time.monotonic() + PATIENCE_S
    while (
        not any(each.sequence == 4 and len(each.arrived_ns) == 2 for each in watched.watch.operations())
        and time.monotonic() < end_s
    ):
        watched.look()
    (operation,) = watched.watch.operations()
    assert (operation.sequence, operation.missing_ranks) == (4, (4,))
    go_on.set()
    on_thread.join(PATIENCE_S)
    assert [each.outcome for each in watched.recorder.recent(3)] == [Outcome.MISSING] * 3


def test_a_mismatch_is_told_with_all_claims() -> None:
    said = (
        "group 'dp': operation 1 does not match on all ranks: rank 4: all_reduce sum float32 (2, 5); "
        "rank 7: all_reduce sum float32 (10,); rank 9: all_reduce sum float32 (10,)"
    )
    # Who is late by more than a moment, on a busy machine, is not among them. That is not so each time.
    assert any(told_of_a_mismatch() == said for _ in range(ATTEMPTS))


def told_of_a_mismatch() -> str:
    watched = Watched()

    def work(engine: shm.Engine, position: int) -> int:
        shape = (10,) if position else (2, 5)
        return run(engine, 10, claim=Claim(CollectiveKind.ALL_REDUCE, ReduceOp.SUM, None, "float32", shape, 1))

    assert set(on_threads(3, work, watched.memory)) == {shm.Outcome.MISMATCH}
    watched.look()
    assert watched.recorder.last_failure is not None
    return watched.recorder.last_failure.failure


def test_what_is_in_progress_when_the_generation_ends_is_void() -> None:
    watched = Watched()
    engine = shm.Engine(watched.memory.descriptor, watched.memory.size_bytes, 3, 0)
    array = np.ones(10, np.float32)
    task = shm.Task(plan_of(10), array, array, 60 * SECOND_NS)
    engine.submit(task)
    watched.wait_for(1)
    watched.watch.end(watched.recorder, time.monotonic_ns())
    end_board(watched.memory, 3)
    assert engine.wait(task, PATIENCE_S) == shm.Outcome.OVER
    engine.close()
    (void,) = watched.recorder.recent(10)
    assert (void.outcome, list(void.arrived_ns), void.failure) == (Outcome.VOID, [4], "")


@pytest.mark.parametrize("seed", range(6))
def test_a_process_that_is_stopped_in_the_middle_of_a_long_operation_is_the_one_that_is_missing(seed: int) -> None:
    watched, chance = Watched(), random.Random(seed)
    processes = [new_process(watched.memory, 3, position) for position in range(3)]
    try:
        for process in processes:
            process.begin(elements=LONG, timeout_s=PATIENCE_S, count=100_000)
        watched.wait_for(3)
        end_s = time.monotonic() + chance.random() * 0.05
        while time.monotonic() < end_s:
            watched.look()
        stopped = chance.randrange(3)
        processes[stopped].send(signal.SIGSTOP)
        wait_until_all_wait_for(watched, RANKS[stopped])
    finally:
        for process in processes:
            process.kill()


def wait_until_all_wait_for(watched: Watched, rank: Rank) -> None:
    """Until nothing has moved for half a second, and only this rank is missing: a busy machine holds others up, too."""
    missing: list[Rank] = []
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        watched.look()
        now_ns = time.monotonic_ns()
        waiting = [each for each in watched.watch.operations() if now_ns - each.moved_ns > SECOND_NS // 2]
        if waiting:
            # The newest one: the stopped rank can be the last that is still in the one before.
            missing = list(waiting[-1].missing_ranks)
            if missing == [rank]:
                return
        time.sleep(0.01)
    raise AssertionError(f"something goes on moving, or all wait for {missing} and not for [{rank}]")


def test_rubbish_on_the_board_does_no_harm() -> None:
    watched, chance = Watched(), random.Random(1)
    memory = (ctypes.c_ubyte * watched.memory.size_bytes).from_address(watched.memory.address)
    words = memoryview(memory).cast("B").cast("Q")
    slots = range(
        16384 // 8,
        16384 // 8 + 3 * (shm.board_bytes(2, STAGE_BYTES) - shm.board_bytes(1, STAGE_BYTES) - STAGE_BYTES) // 8,
    )
    for _ in range(60):
        small = chance.random() < 0.5
        for _ in range(30_000):
            place = chance.choice(slots) if chance.random() < 0.8 else chance.randrange(2048)
            words[place] = chance.randrange(100) if small else chance.getrandbits(64)
        watched.look()
        for operation in watched.watch.operations():
            assert set(operation.missing_ranks) <= set(RANKS)
            assert set(operation.arrived_ns) <= set(RANKS)
            assert operation.claim
        watched.recorder.stragglers()
    watched.watch.end(watched.recorder, time.monotonic_ns())
    msgspec.msgpack.encode(watched.recorder.recent(1000))


def test_entries_that_are_rubbish_are_bounded() -> None:
    watched = Watched()

    def work(engine: shm.Engine, position: int) -> None:
        run(engine, 10)

    on_threads(3, work, watched.memory)
    # The times of the first position's entry: found by its value, so that the test knows nothing of the layout.
    entry = watched.reader.entry(0, 1)
    assert entry is not None
    memory = (ctypes.c_ubyte * watched.memory.size_bytes).from_address(watched.memory.address)
    words = memoryview(memory).cast("B").cast("Q")
    places = [place for place in range(16384 // 8, 60_000) if words[place] == entry.began_ns]
    for place in places:
        words[place] = 2**64 - 1
    watched.look()
    (operation,) = watched.recorder.recent(1)
    assert places
    assert max(operation.arrived_ns.values()) <= time.monotonic_ns() + SECOND_NS


def test_a_reader_refuses_positions_that_are_not_there() -> None:
    memory = new_board(2)
    reader = Reader(memory, memory.address, 2)
    for position in (-1, 2, 64):
        with pytest.raises(InvalidValue):
            reader.entry(position, 1)
        with pytest.raises(InvalidValue):
            reader.failure(position, 1)
    with pytest.raises(InvalidValue):
        Reader(memory, memory.address, 65)
