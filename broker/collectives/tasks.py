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
SLICE_NS: Final = 50_000_000
"""How long Python's signals may have to wait."""
SCHEDULES: Final = ("auto", "ring", "halving")
"""Between hosts, the ways in which bytes go; by the numbers of turns.h."""

_KINDS: Final = (
    CollectiveKind.ALL_REDUCE,
    CollectiveKind.BROADCAST,
    CollectiveKind.ALL_GATHER,
    CollectiveKind.REDUCE_SCATTER,
    CollectiveKind.BARRIER,
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
        schedule: str = "auto",
    ) -> None:
        """Args:
            kind: what to do.
            claim: what all positions have to agree on, at most CLAIM_BYTES_MAX bytes.
            positions: how many take part.
            op: of the kinds that reduce.
            dtype: of the elements; `reducible` with the op.
            array_bytes: of the array that each position contributes, at most ARRAY_BYTES_MAX.
            root: the position that broadcasts.
            impossible: whether these positions cannot do it, so that it ends as a mismatch.
            schedule: between hosts, how an all_reduce goes: "ring", "halving" (ring_engine_steps.c has them), or
                "auto", which chooses by positions and bytes; the same on all positions.

        Raises:
            InvalidValue: something is too long, or not reducible; or there is no such schedule.
        """
        if len(claim) > CLAIM_BYTES_MAX or array_bytes > ARRAY_BYTES_MAX:
            raise InvalidValue("array of bytes", array_bytes, f"is over {ARRAY_BYTES_MAX}, or has too many axes")
        if schedule not in SCHEDULES:
            raise InvalidValue("schedule", schedule, f"is none of {', '.join(SCHEDULES)}")
        self.claim = claim
        self.array_bytes = self.result_bytes = array_bytes
        if kind is CollectiveKind.ALL_GATHER:
            self.result_bytes *= positions
        elif kind is CollectiveKind.REDUCE_SCATTER:
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


class Task:
    """An operation with its arrays, which must not be touched while it is PENDING or UNDECIDED.

    Attributes:
        status: an Outcome.
        sequence: its number, from 1, the same on all positions.
        positions: bits of the positions that failed it: MISSING, those that did not come; MISMATCH, those whose claims
            are known; INTERRUPTED, the one that gave up.
        timeout_ns: MISSING: that of the position whose deadline it was.
    """

    def __init__(self, plan: Plan, source: object, target: object, timeout_ns: int) -> None:
        """Args:
            plan: what to do.
            source: the array that this position contributes, contiguous, with the buffer protocol; or None.
            target: where the result belongs, or None. For an all_reduce it is the same object as `source`.
            timeout_ns: from now on, for the others to come.

        Raises:
            BufferError: an array is not contiguous, or the target read-only.
            InvalidValue: an array has another length than the plan.
        """
        self._plan = plan
        self._task = self._plan._task
        self._task.timeout_ns = timeout_ns
        if target is not None:
            PyObject_GetBuffer(target, cython.address(self._target), PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
            self._has_target = True
            self._task.target = self._target.buf
            if self._target.len != self._plan.result_bytes:
                raise InvalidValue("target of bytes", self._target.len, "is not what the claim says")
        if source is target:
            self._task.source = self._task.target
        elif source is not None:
            PyObject_GetBuffer(source, cython.address(self._source), PyBUF_C_CONTIGUOUS)
            self._has_source = True
            self._task.source = self._source.buf
            if self._source.len != self._plan.array_bytes:
                raise InvalidValue("source of bytes", self._source.len, "is not what the claim says")

    def __dealloc__(self) -> None:
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
    """What the engines have in common: operations are carried out in the order of their calls.

    Threads may call. An engine in a forked child does nothing.
    """

    def __init__(self) -> None:
        self._submitted: list[Task] = []

    def run(self, task: Task) -> int:
        """Carries an operation out; returns its Outcome. Python's other threads go on meanwhile.

        Raises:
            KeyboardInterrupt, or what else a signal's handler raises: the operation has failed on all positions, unless
                it was done already.
        """
        turns, inner = self._turns, cython.address(task._task)
        inner.interrupt = tb_interrupted
        with cython.nogil:
            done = tb_turns_run(turns, inner)
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
        """
        self._submitted = [each for each in self._submitted if not each.status]
        self._submitted.append(task)
        error = tb_turns_submit(self._turns, cython.address(task._task))
        if error:
            self._submitted.remove(task)
            raise OSError(error, "no thread can be started")

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
