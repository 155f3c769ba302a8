# ruff: noqa: F821
# mypy: disable-error-code="name-defined,attr-defined"
"""Operations of the compiled engines (shm.py on one host, ring.py between hosts), for Python: plans, tasks, and turns.

What happens is in C: turns.h says what an operation is and whose turn it is. Only the compiled module can do any of it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from broker.collectives.claims import ITEM_BYTES, CollectiveKind, ReduceOp
from broker.errors import InvalidValue
from broker.schedules import AUTO, HALVING, HIERARCHICAL, RING

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

AVAILABLE: Final = bool(cython.compiled)
"""Whether this module can do anything: it has to be compiled."""
POSITIONS_MAX: Final = 64
"""Positions of an engine: one bit each."""
CLAIM_BYTES_MAX: Final = 508
ARRAY_BYTES_MAX: Final = 1 << 40
"""So many chunks can be counted."""
PLACE_BITS: Final = 40
"""An offset below ARRAY_BYTES_MAX, in the word that names a place in memory."""
WINDOW_NUMBER_MAX: Final = (1 << 23) - 1
SLICE_NS: Final = 50_000_000
"""How long Python's signals may have to wait."""
SCHEDULES: Final = (AUTO, RING, HALVING, HIERARCHICAL)
"""Between hosts, the ways in which bytes go; by the numbers of turns.h."""

_KINDS: Final = (
    CollectiveKind.ALL_REDUCE,
    CollectiveKind.BROADCAST,
    CollectiveKind.ALL_GATHER,
    CollectiveKind.REDUCE_SCATTER,
    CollectiveKind.BARRIER,
    CollectiveKind.REDUCE,
    CollectiveKind.GATHER,
    CollectiveKind.SCATTER,
    CollectiveKind.ALL_TO_ALL,
)
_OPS: Final = tuple(ReduceOp)
_DTYPES: Final = tuple(ITEM_BYTES)


class Outcome(IntEnum):
    """What has become of an operation; turns.h says what each means."""

    PENDING = 0
    COMMITTED = 1
    MISSING = 2
    MISMATCH = 3
    INTERRUPTED = 4
    OVER = 5
    NO_MEMORY = 6
    BROKEN = 7
    UNDECIDED = 8


def reducible(op: ReduceOp, dtype: str) -> bool:
    """Whether there is a kernel for these."""
    return bool(cython.compiled) and tb_reduce_kernel(_OPS.index(op), _DTYPES.index(dtype)) != cython.NULL


class Plan:
    """What an operation is, apart from its arrays; the same for all that have the same claim and the same positions."""

    def __init__(
        self,
        kind: CollectiveKind,
        claim: bytes,
        positions: int,
        *,
        op: ReduceOp | None = None,
        dtype: str = "uint8",
        array_bytes: int = 0,
        root: int = 0,
        impossible: bool = False,
        schedule: str = AUTO,
    ) -> None:
        """Args:
            kind: what to do.
            claim: what all positions have to agree on, at most CLAIM_BYTES_MAX bytes.
            positions: how many take part.
            op: of the kinds that reduce.
            dtype: of the elements; `reducible` with the op.
            array_bytes: of the array that each position contributes, at most ARRAY_BYTES_MAX; of a scatter, the whole.
            root: the position that has or gets the array.
            impossible: whether these positions cannot do it, so that it ends as a mismatch.
            schedule: between hosts, how an all_reduce goes: "ring", "halving" (ring_engine_steps.c has them),
                "hierarchical" (ring_engine_hosts.c), or "auto", which chooses of the first two by positions and bytes;
                the same on all positions.

        Raises:
            InvalidValue: something is too long, or not reducible; or there is no such schedule.
        """
        if len(claim) > CLAIM_BYTES_MAX or array_bytes > ARRAY_BYTES_MAX:
            raise InvalidValue("array of bytes", array_bytes, f"is over {ARRAY_BYTES_MAX}, or has too many axes")
        if schedule not in SCHEDULES:
            raise InvalidValue("schedule", schedule, f"is none of {', '.join(SCHEDULES)}")
        self.claim = claim
        self.array_bytes = self.result_bytes = array_bytes
        if kind in (CollectiveKind.ALL_GATHER, CollectiveKind.GATHER):
            self.result_bytes *= positions
        elif kind in (CollectiveKind.REDUCE_SCATTER, CollectiveKind.SCATTER):
            self.result_bytes //= positions
        task = cython.address(self._task)
        task.kind = _KINDS.index(kind)
        task.schedule = SCHEDULES.index(schedule)
        task.claim = cython.cast("const unsigned char *", claim)
        task.claim_bytes = len(claim)
        task.bytes = array_bytes
        task.item_bytes = ITEM_BYTES[dtype]
        task.root = root
        task.impossible = impossible
        task.divisor = 1
        if op is not None:
            task.divisor = positions if op is ReduceOp.MEAN else 1
            task.kernel = tb_reduce_kernel(_OPS.index(op), _DTYPES.index(dtype))
            if task.kernel == cython.NULL:
                raise InvalidValue("op", str(op), f"cannot be carried out for {dtype} by an engine")


class Pieces:
    """Arrays that count as one when they are put end to end, and the hold on their memory."""

    def __cinit__(self) -> None:
        self.count = 0

    def _hold(self, arrays: object, flags: int) -> int:
        count = len(arrays)  # type: ignore[arg-type]
        self._pieces = cython.cast("tb_piece *", calloc(max(count, 1), cython.sizeof(tb_piece)))
        self._buffers = cython.cast("Py_buffer *", calloc(max(count, 1), cython.sizeof(Py_buffer)))
        if self._pieces == cython.NULL or self._buffers == cython.NULL:
            raise MemoryError
        start = 0
        for array in arrays:
            PyObject_GetBuffer(array, cython.address(self._buffers[self.count]), flags)
            self._pieces[self.count].data = cython.cast("unsigned char *", self._buffers[self.count].buf)
            self._pieces[self.count].bytes = self._buffers[self.count].len
            self._pieces[self.count].start = start
            start += self._pieces[self.count].bytes
            self.count += 1
        self.total_bytes = start
        return 0

    def __dealloc__(self) -> None:
        for index in range(self.count):
            PyBuffer_Release(cython.address(self._buffers[index]))
        free(self._buffers)
        free(self._pieces)


class Window:
    """Memory of one length on each position of a board, which all positions map."""

    def __init__(self, number: int, addresses: list[int], position: int, size_bytes: int, holder: object) -> None:
        """Args:
            number: from 1 to WINDOW_NUMBER_MAX, the same on all positions, and no other window's of the board.
            addresses: where the memory of each position begins here.
            position: this process's own.
            size_bytes: of each, at most ARRAY_BYTES_MAX.
            holder: keeps the mappings.

        Raises:
            InvalidValue: the number or the length is out of bounds.
        """
        if not 0 < number <= WINDOW_NUMBER_MAX or not 0 <= size_bytes <= ARRAY_BYTES_MAX:
            raise InvalidValue("window", number, f"must be from 1 to {WINDOW_NUMBER_MAX}; it has {size_bytes} bytes")
        self._number = number
        self._positions = len(addresses)
        self._position = position
        self.size_bytes = size_bytes
        self._holder = holder
        self._bases = cython.cast("unsigned char **", calloc(POSITIONS_MAX, cython.sizeof(uintptr_t)))
        if self._bases == cython.NULL:
            raise MemoryError
        for each, address in enumerate(addresses[:POSITIONS_MAX]):
            self._bases[each] = cython.cast("unsigned char *", cython.cast(uintptr_t, address))

    @property
    def busy(self) -> bool:
        """Whether a task has its target in it that is not COMMITTED: others may have to be kept from writing to it."""
        return self._writer != cython.NULL and self._writer.status != 1  # type: ignore[no-any-return]

    def __dealloc__(self) -> None:
        free(self._bases)


class Task:
    """An operation with its arrays, which must not be touched while it is PENDING or UNDECIDED.

    Attributes:
        status: an Outcome.
        sequence: its number, from 1, the same on all positions.
        positions: bits of the positions that failed it: MISSING, those that did not come; MISMATCH, those whose claims
            are known; INTERRUPTED, the one that gave up.
        timeout_ns: MISSING: that of the position whose deadline it was.
    """

    def __init__(
        self,
        plan: Plan,
        source: object,
        target: object,
        timeout_ns: int,
        scratch: bool = False,  # noqa: FBT001, FBT002
        priority: int = 0,
    ) -> None:
        """Args:
            plan: what to do.
            source: the array that this position contributes, contiguous, with the buffer protocol; or None. A list or
                tuple of arrays counts as one array, in which they lie end to end; not for a reduce_scatter, and not
                between hosts.
            target: where the result belongs, likewise, or None. For an all_reduce or a reduce it may be the same object
                as `source`; otherwise nothing of them overlaps.
            timeout_ns: from now on, for the others to come.
            scratch: whether the target may hold anything after a failure; otherwise it is then as it was.
            priority: of an operation that is submitted: the highest goes first, of those submitted everywhere;
                between hosts all go in the order of their calls.

        Raises:
            BufferError: an array is not contiguous, or the target read-only.
            InvalidValue: an array has another length than the plan.
        """
        self._plan = plan
        self._task = self._plan._task
        self._task.timeout_ns = timeout_ns
        self._task.scratch = scratch
        self._task.priority = priority
        if isinstance(target, (list, tuple)):
            self._targets = self._adopt(target, self._plan.result_bytes, True)
            self._task.targets = self._targets._pieces
            self._task.target_count = self._targets.count
            self._task.target_bytes = self._targets.total_bytes
        elif target is not None:
            PyObject_GetBuffer(target, cython.address(self._target), PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
            self._has_target = True
            self._task.target = self._target.buf
            self._task.target_bytes = self._target.len
            if self._target.len != self._plan.result_bytes:
                raise InvalidValue("target of bytes", self._target.len, "is not what the claim says")
        if source is target:
            self._task.source = self._task.target
            self._task.sources = self._task.targets
            self._task.source_count = self._task.target_count
        elif isinstance(source, (list, tuple)):
            self._sources = self._adopt(source, self._plan.array_bytes, False)
            self._task.sources = self._sources._pieces
            self._task.source_count = self._sources.count
        elif source is not None:
            PyObject_GetBuffer(source, cython.address(self._source), PyBUF_C_CONTIGUOUS)
            self._has_source = True
            self._task.source = self._source.buf
            if self._source.len != self._plan.array_bytes:
                raise InvalidValue("source of bytes", self._source.len, "is not what the claim says")

    def share(self, source: Window, target: Window) -> int:
        """Says that the arrays lie in memory that all positions map.

        If all say so of the same places, each array is read once and written once; after a failure the target may hold
        anything then, and others may still write to it.

        Args:
            source: in which the source lies, an array of an all_reduce.
            target: in which the target lies, which does not overlap the source; not busy.

        Raises:
            InvalidValue: one does not.
        """
        self._place(source, cython.address(self._task.shared_source), self._task.source, self._task.bytes)
        self._place(target, cython.address(self._task.shared_target), self._task.target, self._task.target_bytes)
        self._source_window, self._target_window = source, target
        target._writer = cython.address(self._task)
        return 0

    def _place(self, window: Window, shared: object, array: object, array_bytes: int) -> int:
        base = cython.cast(uintptr_t, window._bases[window._position])
        start = cython.cast(uintptr_t, array)
        size_bytes = cython.cast("size_t", window.size_bytes)
        # Compared before they are subtracted: no address is below zero.
        if self._plan._task.kind != 0 or start < base or start - base + array_bytes > size_bytes:
            raise InvalidValue("array of bytes", array_bytes, "does not lie in the memory that it is said to lie in")
        inside = start - base
        shared.bases = window._bases
        shared.offset = inside
        shared.place = window._number << PLACE_BITS | inside
        return 0

    def _adopt(self, arrays: object, expected: int, writable: bool) -> Pieces:  # noqa: FBT001
        if self._plan._task.kind == 3:
            raise InvalidValue("arrays", len(arrays), "a reduce_scatter takes one array")  # type: ignore[arg-type]
        pieces = Pieces()
        pieces._hold(arrays, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE if writable else PyBUF_C_CONTIGUOUS)
        if cython.cast("Py_ssize_t", pieces.total_bytes) != expected:
            raise InvalidValue("arrays of bytes", pieces.total_bytes, "are not what the claim says")
        return pieces

    def __dealloc__(self) -> None:
        if self._target_window is not None and self._target_window._writer == cython.address(self._task):
            self._target_window._writer = cython.NULL
        if self._has_source:
            PyBuffer_Release(cython.address(self._source))
        if self._has_target:
            PyBuffer_Release(cython.address(self._target))

    @property
    def status(self) -> int:
        """What has become of it; an Outcome."""
        return self._task.status  # type: ignore[no-any-return]

    @property
    def sequence(self) -> int:
        """Its number; 0 before it has begun."""
        return self._task.sequence  # type: ignore[no-any-return]

    @property
    def positions(self) -> list[int]:
        """Who failed it, ascending."""
        return [position for position in range(POSITIONS_MAX) if self._task.positions >> position & 1]

    @property
    def timeout_ns(self) -> int:
        """The time that was over."""
        return self._task.failed_timeout_ns  # type: ignore[no-any-return]

    @property
    def target_holder(self) -> object:
        """What keeps the memory of all positions in which the target lies; None if it does not lie in such memory."""
        return None if self._target_window is None else self._target_window._holder

    @property
    def ended_ns(self) -> int:
        """Of one that was submitted, once its status is not PENDING: when it was done, on the monotonic clock."""
        return self._task.ended_ns  # type: ignore[no-any-return]

    @property
    def claim(self) -> bytes:
        """What this position has asked for."""
        return self._plan.claim

    def claims(self) -> dict[int, bytes]:
        """MISMATCH: the claims of the positions that had come, as they were when the first one saw the mismatch.

        Only while the engine exists, and until it has begun three more operations.
        """
        found = {}
        record = self._task.record
        if record != cython.NULL:
            for position in self.positions:
                at = cython.cast("int", position)
                size = min(record.claims[at].bytes, CLAIM_BYTES_MAX)
                found[position] = cython.cast("const unsigned char *", record.claims[at].data)[:size]
        return found

    def __repr__(self) -> str:
        return f"<Task {self.sequence} {Outcome(self.status).name}>"


class Turns:
    """What the engines have in common: operations are carried out in the order of their calls, or of their priorities.

    Threads may call. An engine in a forked child does nothing.
    """

    def __init__(self) -> None:
        self._submitted: list[Task] = []
        self._runs: list[Task] = []

    def _admit(self, task: Task) -> int:
        """Raises what an engine has against a task, before it gets it."""
        return 0

    def run(self, task: Task) -> int:
        """Carries an operation out; returns its Outcome. Python's other threads go on meanwhile.

        Raises:
            KeyboardInterrupt, or what else a signal's handler raises: the operation has failed on all positions, unless
                it was done already.
            InvalidValue: the engine does not carry such operations.
        """
        self._admit(task)
        turns, inner = self._turns, cython.address(task._task)
        inner.interrupt = tb_interrupted
        self._runs.append(task)
        with cython.nogil:
            done = tb_turns_run(turns, inner)
        try:
            # Before anything else: a signal's handler may have raised meanwhile.
            tb_raise()
        finally:
            self._runs.remove(task)
        if not done:
            inner.interrupt = cython.NULL
            self.submit(task)
            while self.wait(task, 1.0) == 0:
                pass
        tb_raise()
        return inner.status  # type: ignore[no-any-return]

    def submit(self, task: Task) -> None:
        """Has an operation carried out behind all others, by the engine's own thread.

        Raises:
            OSError: there can be no such thread.
            InvalidValue: the engine does not carry such operations.
        """
        self._admit(task)
        self._submitted = [each for each in self._submitted if not each.status]
        self._submitted.append(task)
        error = tb_turns_submit(self._turns, cython.address(task._task))
        if error:
            self._submitted.remove(task)
            raise OSError(error, "no thread can be started")

    def cancel(self, task: Task) -> None:
        """Has an operation end as INTERRUPTED on all positions, when its turn comes; what has its verdict stays.

        Between hosts, what has promised to go on may be UNDECIDED, as after a signal.
        """
        tb_turns_cancel(self._turns, cython.address(task._task))

    def cancel_all(self) -> bool:
        """Cancels what is under way or waits, also in other threads; says whether there was something."""
        found = [each for each in [*self._runs, *self._submitted] if not each.status]
        for task in found:
            self.cancel(task)
        return bool(found)

    def wait(self, task: Task, timeout_s: float) -> int:
        """Waits for a submitted operation; returns its Outcome, PENDING when the time is over.

        Raises:
            KeyboardInterrupt, or what else a signal's handler raises: the operation goes on.
        """
        turns, inner = self._turns, cython.address(task._task)
        end_ns = tb_now_ns() + cython.cast(uint64_t, max(timeout_s, 0.0) * 1e9)
        while True:
            now_ns = tb_now_ns()
            left_ns = end_ns - now_ns if now_ns < end_ns else 0
            slice_ns = min(left_ns, SLICE_NS)
            with cython.nogil:
                status = tb_turns_wait(turns, inner, slice_ns)
            tb_interrupted()
            tb_raise()
            if status or not left_ns:
                return status  # type: ignore[no-any-return]
