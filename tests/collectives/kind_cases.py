"""Operations over links: what each position gives, what becomes of it, and of all that when a link breaks."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from broker.collectives.claims import ITEM_BYTES, CollectiveKind, ReduceOp
from broker.collectives.ring import Engine
from broker.collectives.tasks import Outcome, Plan, Task
from tests.collectives.processes import PATIENCE_S
from tests.collectives.rings import SECOND_NS, mesh, unix_pair
from tests.collectives.stranger import Cut

KINDS = [CollectiveKind.REDUCE, CollectiveKind.GATHER, CollectiveKind.SCATTER, CollectiveKind.ALL_TO_ALL]
PERIOD = 5 << 10
"""After so many elements what is given repeats itself, and is copied: remainders of all took longer than the engine."""


@dataclass(frozen=True)
class Case:
    """An operation of so many elements of each part, on so many positions."""

    kind: CollectiveKind
    elements: int
    positions: int
    root: int = 0
    dtype: str = "float32"
    op: ReduceOp = ReduceOp.SUM
    schedule: str = "auto"

    @property
    def reduces(self) -> bool:
        """Whether arrays become one."""
        return self.kind in (CollectiveKind.REDUCE, CollectiveKind.ALL_REDUCE)

    @property
    def shares_out(self) -> bool:
        """Whether an array has a part for each position."""
        return self.kind in (CollectiveKind.SCATTER, CollectiveKind.ALL_TO_ALL)

    def plan(self, *, claim: bytes = b"claim", impossible: bool = False) -> Plan:
        """For the engine."""
        parts = self.positions if self.shares_out else 1
        return Plan(
            self.kind, claim, self.positions,
            op=self.op if self.reduces else None, dtype=self.dtype, schedule=self.schedule,
            array_bytes=ITEM_BYTES[self.dtype] * self.elements * parts, root=self.root, impossible=impossible,
        )  # fmt: skip

    def source(self, position: int) -> np.ndarray | None:
        """What a position gives: whole numbers, of which sums and products are exact in any order."""
        if self.kind is CollectiveKind.SCATTER and position != self.root:
            return None
        count = self.elements * (self.positions if self.shares_out else 1)
        return np.tile(((np.arange(PERIOD) + 3 * position) % 5).astype(self.dtype), -(-count // PERIOD))[:count]

    def target(self, position: int) -> np.ndarray | None:
        """Where the result of a position belongs, if it gets one."""
        if self.kind in (CollectiveKind.REDUCE, CollectiveKind.GATHER) and position != self.root:
            return None
        many = self.kind in (CollectiveKind.GATHER, CollectiveKind.ALL_TO_ALL)
        return np.full(self.elements * (self.positions if many else 1), np.array(77).astype(self.dtype))

    def result(self, position: int) -> np.ndarray:
        """What a position gets, if it gets something; it is made once for all that ask."""
        whole = self.reduces or self.kind is CollectiveKind.GATHER
        return _result(self, 0 if whole else position)

    def make_result(self, position: int) -> np.ndarray:
        """What a position gets, if it gets something: when all get the same, position 0 stands for all."""
        sources = [self.source(each) for each in range(self.positions)]
        share = slice(position * self.elements, (position + 1) * self.elements)
        if self.kind is CollectiveKind.SCATTER:
            return sources[self.root][share]  # type: ignore[index]
        if self.kind is CollectiveKind.ALL_TO_ALL:
            return np.concatenate([each[share] for each in sources])  # type: ignore[index]
        if self.kind is CollectiveKind.GATHER:
            return np.concatenate(sources)  # type: ignore[arg-type]
        functions = {ReduceOp.SUM: np.sum, ReduceOp.MAX: np.max, ReduceOp.PRODUCT: np.prod}
        return functions[self.op](sources, axis=0).astype(self.dtype)  # type: ignore[arg-type]

    def begun(self, position: int, *, scratch: bool = False) -> Begun:
        """A task with arrays of its own."""
        return Begun(self, position, scratch)


@lru_cache(8)
def _result(case: Case, position: int) -> np.ndarray:
    result = case.make_result(position)
    result.flags.writeable = False
    return result


class Begun:
    """One position's task."""

    def __init__(self, case: Case, position: int, scratch: bool) -> None:  # noqa: FBT001
        self.case, self.position, self.scratch = case, position, scratch
        self.source, self.target = case.source(position), case.target(position)
        self.task = Task(case.plan(), self.source, self.target, 1000 * SECOND_NS, scratch)

    def check(self, *, done: bool) -> None:
        """What is sent is as it was; the target is the result, or as it was too."""
        assert self.source is None or np.array_equal(self.source, self.case.source(self.position))  # type: ignore[arg-type]
        if self.target is None or (self.scratch and not done):
            return
        due = self.case.result(self.position) if done else self.case.target(self.position)
        assert np.array_equal(self.target, due)  # type: ignore[arg-type]


def cut_one(case: Case, cut: Cut, operations: int, hosts: str = "") -> bool:
    """Whether anything has failed of operations in a row, when the link from 0 to 1 is one that breaks.

    Arrays are checked, and what is undecided is settled as a broker does it.
    """
    pairs = iter([cut.ends])
    links = mesh(case.positions, make=lambda: next(pairs, None) or unix_pair())
    engines = [Engine(links[position], position, hosts=hosts) for position in range(case.positions)]
    tasks: list[list[Begun]] = [[] for _ in engines]

    def work(position: int) -> None:
        for _ in range(operations):
            tasks[position].append(case.begun(position))
            if engines[position].run(tasks[position][-1].task) != Outcome.COMMITTED:
                for engine in engines:
                    engine.end()
                break

    threads = [threading.Thread(target=work, args=(position,)) for position in range(case.positions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    failed = False
    for number in range(operations):
        begun = [of[number] for of in tasks if number < len(of)]
        committed = any(each.task.status == Outcome.COMMITTED for each in begun)
        for each in begun:
            if each.task.status == Outcome.UNDECIDED:
                each.check(done=False)
                engines[each.position].settle(each.task, committed=committed)
            assert each.task.status == (Outcome.COMMITTED if committed else Outcome.OVER)
            each.check(done=committed)
            failed |= not committed
    for engine in engines:
        engine.close()
    return failed
