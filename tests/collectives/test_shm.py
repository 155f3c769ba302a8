"""Collectives on a board: what they compute, and that a failure is the same for all and changes nothing."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from broker.collectives import shm
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.shm import Outcome
from broker.errors import InvalidValue, LimitExceeded
from broker.limits import ARENA_BYTES_MAX
from broker.transport.shared_memory import SharedMemory
from tests.collectives.boards import SECOND_NS, STAGE_BYTES, end_board, new_board, new_process, on_threads
from tests.collectives.processes import PATIENCE_S, Process

pytestmark = pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")

LONG = 3 << 20
"""Elements of float32 that do not fit into the stages, so that the array changes while others may still fail."""
HELD = 3 << 19
"""And that do fit, past the processor's caches."""
SLOTS_OFFSET, CLAIMED_OFFSET, CHUNK_BITS, VERDICT_1_OFFSET = 16384, 128, 24, 256 + 128
"""Of the layout in board.h."""
POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of <linux/mman.h>, which Python does not name."""
PIECE_BYTES = 128 << 10
"""What a position claims at a time of arrays in common memory."""


def all_reduce(elements: int, positions: int, op: ReduceOp = ReduceOp.SUM, claim: bytes = b"") -> shm.Plan:
    return shm.Plan(
        CollectiveKind.ALL_REDUCE, claim or b"%d" % elements, positions,
        op=op, dtype="float32", array_bytes=4 * elements,
    )  # fmt: skip


@pytest.mark.parametrize("draining", [False, True])
def test_the_end_of_a_board_ends_who_waits(draining: bool) -> None:
    memory = new_board(2)
    begun = threading.Event()

    def work(engine: shm.Engine, position: int) -> int:
        if position == 1:
            begun.wait()
            end_board(memory, 2, draining=draining)
        array = np.ones(LONG, np.float32)
        task = shm.Task(all_reduce(LONG, 2), array, array, 1000 * SECOND_NS)
        if position == 0:
            engine.submit(task)
            begun.set()
            while engine.wait(task, 1.0) == Outcome.PENDING:
                pass
            status = task.status
        else:
            status = engine.run(task)
        assert (array == 1).all()
        return status

    assert on_threads(2, work, memory) == [Outcome.OVER] * 2


def test_draining_lets_those_finish_that_have_all_come() -> None:
    memory, elements = new_board(2, 32 << 20), 5 << 20
    engines = [shm.Engine(memory.descriptor, memory.size_bytes, 2, position) for position in range(2)]
    arrays = [np.ones(elements, np.float32) for _ in engines]
    tasks = [shm.Task(all_reduce(elements, 2), array, array, 60 * SECOND_NS) for array in arrays]
    for engine, task in zip(engines, tasks, strict=True):
        engine.submit(task)
    for position in range(2):
        _wait_for_sequence(memory, position, 1, positions=2, stage_bytes=32 << 20, between_s=0)
    # At this moment they still stage.
    end_board(memory, 2, draining=True)
    for engine, task, array in zip(engines, tasks, arrays, strict=True):
        assert engine.wait(task, PATIENCE_S) == Outcome.COMMITTED
        assert (array == 2).all()
        engine.close()


def test_a_committed_operation_is_not_broken_because_its_deadline_is_over() -> None:
    memory, elements, over = new_board(1), 2 << 20, 2**64 - 2 * SECOND_NS
    engine = shm.Engine(memory.descriptor, memory.size_bytes, 1, 0)
    array = np.ones(elements, np.float32)
    # As for one that was stopped: two seconds after the deadline it sees that others have committed it, and looks.
    task = shm.Task(all_reduce(elements, 1), array, array, over)
    engine.submit(task)
    _wait_for_sequence(memory, 0, 1, positions=1, between_s=0)
    ctypes.c_uint64.from_address(memory.address + VERDICT_1_OFFSET).value = 1 << 16 | Outcome.COMMITTED
    end_board(memory, 1)
    assert engine.wait(task, PATIENCE_S) == Outcome.COMMITTED
    engine.close()


@pytest.mark.parametrize("elements", [HELD, LONG])
def test_a_stage_for_which_there_is_no_memory_fails_the_operation(elements: int) -> None:
    size_bytes, slots_bytes = shm.board_bytes(2, STAGE_BYTES), shm.board_bytes(2, STAGE_BYTES) - 2 * STAGE_BYTES
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(POPULATE_WRITE)
        except OSError:
            pytest.skip("the system makes no pages ahead (before Linux 5.14)")
    file = os.memfd_create("board")
    try:
        os.ftruncate(file, size_bytes)
        with mmap.mmap(file, slots_bytes) as beginning:
            in_it = ctypes.c_ubyte.from_buffer(beginning)
            shm.format_board(ctypes.addressof(in_it), size_bytes, 2)
            del in_it
        # Pages behind the end of a file cannot be had: none of the stage of position 1.
        os.ftruncate(file, slots_bytes + STAGE_BYTES)
        engines = [shm.Engine(file, size_bytes, 2, position) for position in range(2)]
    finally:
        os.close(file)
    arrays = [np.ones(elements, np.float32) for _ in engines]
    tasks = [shm.Task(all_reduce(elements, 2), array, array, 60 * SECOND_NS) for array in arrays]
    for engine, task in zip(engines, tasks, strict=True):
        engine.submit(task)
    outcomes = [engine.wait(task, PATIENCE_S) for engine, task in zip(engines, tasks, strict=True)]
    assert outcomes == [Outcome.INTERRUPTED, Outcome.NO_MEMORY]
    assert tasks[0].positions == [1]
    assert all((array == 1).all() for array in arrays)
    for engine in engines:
        engine.close()


def test_a_board_of_another_kind_does_not_fit() -> None:
    memory = new_board(2)
    with pytest.raises(InvalidValue, match="none of 3 positions"):
        shm.Engine(memory.descriptor, memory.size_bytes, 3, 0)
    with pytest.raises(InvalidValue, match="none of 2 positions"):
        shm.Engine(memory.descriptor, memory.size_bytes - 4096, 2, 0)
    with pytest.raises(InvalidValue, match="position"):
        shm.Engine(memory.descriptor, memory.size_bytes, 2, 2)
    ctypes.c_uint32.from_address(memory.address + 8).value = shm.VERSION + 1
    with pytest.raises(InvalidValue, match="none of 2 positions"):
        shm.Engine(memory.descriptor, memory.size_bytes, 2, 0)
    with pytest.raises(LimitExceeded, match="mapped"):
        shm.Engine(-1, memory.size_bytes, 2, 0)
    shorter = new_board(2, 1 << 20)
    with pytest.raises(InvalidValue, match="none of 2 positions"):
        shm.Engine(shorter.descriptor, shorter.size_bytes, 2, 0)
    assert shm.board_bytes(0) == shm.board_bytes(shm.POSITIONS_MAX + 1) == 0


@pytest.mark.parametrize("positions", [1, 2, 7, shm.POSITIONS_MAX])
def test_a_board_is_as_long_as_memory_that_is_passed_may_be(positions: int) -> None:
    assert 0.95 * ARENA_BYTES_MAX < shm.board_bytes(positions) <= ARENA_BYTES_MAX


def test_a_board_is_writable_for_all_and_keeps_its_length() -> None:
    memory = new_board(2)
    with pytest.raises(InvalidValue, match="seals"):
        SharedMemory.adopt(_duplicate(memory), memory.size_bytes)
    private = SharedMemory.create(4096)
    with pytest.raises(Exception, match="mapped"):
        SharedMemory.adopt(_duplicate(private), 4096, common=True)


def _duplicate(memory: SharedMemory) -> int:
    return os.dup(memory.descriptor)


# Processes.


@pytest.fixture
def ranks() -> Iterator[tuple[SharedMemory, list[Process]]]:
    memory = new_board(3)
    processes = [new_process(memory, 3, position) for position in range(3)]
    yield memory, processes
    for process in processes:
        process.end()


def begin_all(processes: list[Process], **wishes: object) -> None:
    for process in processes:
        process.begin(**wishes)


def _window(number: int, arrays: list[np.ndarray], position: int) -> shm.Window:
    """Of arrays that all positions see, as threads of one process do."""
    addresses = [array.ctypes.data for array in arrays]
    return shm.Window(number, addresses, position, arrays[0].nbytes, arrays)


def _run_direct(engine: shm.Engine, position: int, sources: list[np.ndarray], targets: list[np.ndarray]) -> int:
    """A sum of arrays that all see, as this position sees them."""
    elements = sources[0].size
    task = shm.Task(all_reduce(elements, len(sources)), sources[position], targets[position], 60 * SECOND_NS)
    task.share(_window(1, sources, position), _window(2, targets, position))
    return engine.run(task)


def _slot(memory: SharedMemory, positions: int, position: int, stage_bytes: int = STAGE_BYTES) -> int:
    """The address of a position's slot (board.h)."""
    slot_bytes = (memory.size_bytes - SLOTS_OFFSET) // positions - stage_bytes
    return memory.address + SLOTS_OFFSET + position * slot_bytes


def _claimed(memory: SharedMemory, positions: int, part: int) -> ctypes.c_uint64:
    """How much of a part is claimed."""
    return ctypes.c_uint64.from_address(_slot(memory, positions, part) + CLAIMED_OFFSET)


@pytest.mark.parametrize("elements", [2048, LONG])
def test_of_common_memory_one_position_reduces_each_piece_to_where_all_want_it(elements: int) -> None:
    sources = [np.full(elements, position + 1, np.float32) for position in range(2)]
    targets = [np.zeros(elements, np.float32) for _ in range(2)]
    elsewhere = np.zeros(elements, np.float32)

    def work(engine: shm.Engine, position: int) -> int:
        # Position 1 takes another array for the target of position 0, so that it shows who has written what.
        seen = [elsewhere, targets[1]] if position == 1 else targets
        target = _window(2, seen, position)
        task = shm.Task(all_reduce(elements, 2), sources[position], targets[position], 60 * SECOND_NS)
        task.share(_window(1, sources, position), target)
        assert target.busy
        status = engine.run(task)
        assert target.busy == (status != Outcome.COMMITTED)
        return status

    assert on_threads(2, work) == [Outcome.COMMITTED] * 2
    assert (targets[1] == 3).all()
    assert ((targets[0] == 3) != (elsewhere == 3)).all()
    assert ((targets[0] == 0) != (elsewhere == 0)).all()
    assert [np.unique(source).tolist() for source in sources] == [[1.0], [2.0]]


def test_who_is_done_with_its_part_takes_of_the_others_and_leaves_what_is_claimed() -> None:
    memory, pieces = new_board(2), LONG * 4 // 2 // PIECE_BYTES
    sources, targets, later = ([np.full(LONG, value, np.float32) for _ in range(2)] for value in (1, 0, 0))

    def work(engine: shm.Engine, position: int) -> list[int]:
        return [_run_direct(engine, position, sources, results) for results in (targets, later)]

    # Of both parts of the first operation somebody else has claimed some, and leaves them undone.
    _claimed(memory, 2, 0).value = 1 << CHUNK_BITS | pieces
    _claimed(memory, 2, 1).value = 1 << CHUNK_BITS | pieces - 3
    assert on_threads(2, work, memory) == [[Outcome.COMMITTED] * 2] * 2
    last = 3 * PIECE_BYTES // 4
    for target in targets:
        assert (target[:-last] == 0).all()
        assert (target[-last:] == 2).all()
    assert all((target == 2).all() for target in later)


def test_who_has_come_and_has_no_processor_is_not_waited_for() -> None:
    memory = new_board(2)
    sources = [np.full(LONG, position + 1, np.float32) for position in range(2)]
    targets = [np.zeros(LONG, np.float32) for _ in range(2)]

    def come_like_position_0() -> None:
        """All that position 1 writes until it has come, which is what position 0 has written."""
        _wait_for_sequence(memory, 0, 1, positions=2)
        first, own = _slot(memory, 2, 0), _slot(memory, 2, 1)
        # What says that it has come at the end.
        ctypes.memmove(own + CLAIMED_OFFSET, first + CLAIMED_OFFSET, own - first - CLAIMED_OFFSET)
        ctypes.memmove(own, first, CLAIMED_OFFSET)

    engine = shm.Engine(memory.descriptor, memory.size_bytes, 2, 0)
    other = threading.Thread(target=come_like_position_0)
    other.start()
    assert _run_direct(engine, 0, sources, targets) == Outcome.COMMITTED
    other.join()
    assert all((target == 3).all() for target in targets)
    engine.close()


def _turn_ns() -> int:
    """How long the kernel gives this thread a processor when others want one; 0 where it does not say so."""
    libc, words = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint64 * 6)(48)
    number = {"x86_64": 315, "aarch64": 275}[os.uname().machine]
    assert libc.syscall(number, 0, words, 48, 0) == 0
    return words[3]


def test_positions_that_share_a_processor_leave_its_turns_as_they_were() -> None:
    sources = [np.full(LONG, position + 1, np.float32) for position in range(3)]
    targets = [np.zeros(LONG, np.float32) for _ in range(3)]

    def work(engine: shm.Engine, position: int) -> tuple[int, bool]:
        before = _turn_ns()
        return _run_direct(engine, position, sources, targets), _turn_ns() == before

    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    try:
        assert on_threads(3, work) == [(Outcome.COMMITTED, True)] * 3
    finally:
        os.sched_setaffinity(0, processors)
    assert all((target == 6).all() for target in targets)


@pytest.mark.parametrize("begin", [0, 8191, 8193, 16384])
def test_what_does_not_lie_in_a_window_is_refused(begin: int) -> None:
    # Before and behind the window, and with one element outside of it at either end.
    memory = np.zeros(3 * 8192, np.float32)
    array, inside, target = np.zeros(8192, np.float32), memory[8192:16384], memory[begin : begin + 8192]
    task = shm.Task(all_reduce(8192, 1), array, target, SECOND_NS)
    with pytest.raises(InvalidValue, match="does not lie in the memory"):
        task.share(_window(1, [array], 0), _window(2, [inside], 0))


def test_a_window_has_a_number_and_a_size() -> None:
    array = np.zeros(8192, np.float32)
    with pytest.raises(InvalidValue, match="window"):
        shm.Window(0, [array.ctypes.data], 0, array.nbytes, array)


def test_a_result_that_is_written_past_the_caches() -> None:
    elements, started = (5 << 20) + 3, np.arange((5 << 20) + 3, dtype=np.float32) % 1000

    def work(engine: shm.Engine, position: int) -> bool:
        array = started + position
        assert engine.run(shm.Task(all_reduce(elements, 2), array, array, 60 * SECOND_NS)) == Outcome.COMMITTED
        return bool((array == 2 * started + 1).all())

    assert on_threads(2, work, new_board(2, 32 << 20)) == [True] * 2


@pytest.mark.parametrize("elements", [1, 500_000, HELD, LONG])
def test_processes_reduce_many_times(ranks: tuple[SharedMemory, list[Process]], elements: int) -> None:
    begin_all(ranks[1], elements=elements, timeout_s=20, count=5)
    for process in ranks[1]:
        assert process.outcome() | {"positions": []} == {
            "outcome": "COMMITTED", "intact": True, "positions": [], "claims": {}, "done": 5
        }  # fmt: skip


@pytest.mark.parametrize("elements", [1, 500_000, HELD, LONG])
def test_a_killed_process_hangs_nobody(ranks: tuple[SharedMemory, list[Process]], elements: int) -> None:
    memory, processes = ranks
    begin_all(processes, elements=elements, timeout_s=1000, count=1_000_000)
    # The operations go on by themselves, so this hits at any moment of one.
    _wait_for_sequence(memory, 1, 2)
    processes.pop().kill()
    end_board(memory, 3)
    for process in processes:
        told = process.outcome()
        assert told["outcome"] == "OVER"
        assert told["intact"]


@pytest.mark.parametrize("elements", [1, HELD, LONG])
def test_a_stopped_process_is_named_and_told(ranks: tuple[SharedMemory, list[Process]], elements: int) -> None:
    memory, processes = ranks
    begin_all(processes, elements=elements, timeout_s=3, count=1_000_000)
    _wait_for_sequence(memory, 1, 2)
    processes[1].send(signal.SIGSTOP)
    others = [processes[0].outcome(), processes[2].outcome()]
    processes[1].send(signal.SIGCONT)
    for told in [*others, processes[1].outcome()]:
        assert told["outcome"] == "MISSING"
        assert told["intact"]
        assert 1 in told["positions"]  # type: ignore[operator]
    assert others[0]["done"] == others[1]["done"]


@pytest.mark.parametrize("elements", [HELD, LONG])
def test_ctrl_c_fails_the_operation_everywhere(ranks: tuple[SharedMemory, list[Process]], elements: int) -> None:
    memory, processes = ranks
    for process in processes[:2]:
        process.begin(elements=elements, timeout_s=1000)
    _wait_for_sequence(memory, 0, 1)
    processes[0].send(signal.SIGINT)
    assert processes[0].outcome() == {"raised": "KeyboardInterrupt", "intact": True}
    told = processes[1].outcome()
    assert (told["outcome"], told["positions"], told["intact"]) == ("INTERRUPTED", [0], True)


def _wait_for_sequence(
    memory: SharedMemory, position: int, sequence: int, *,
    positions: int = 3, stage_bytes: int = STAGE_BYTES, between_s: float = 0.001,
) -> None:  # fmt: skip
    """Until a position has arrived at an operation; its slot begins with that counter."""
    counter = ctypes.c_uint64.from_address(_slot(memory, positions, position, stage_bytes))
    never, deadline = threading.Event(), time.monotonic() + PATIENCE_S
    while counter.value < sequence:
        assert time.monotonic() < deadline, f"position {position} has not arrived at operation {sequence}"
        never.wait(between_s)
