"""Collectives by the schedules `ring`, `halving` and `hierarchical`: over links between members (ways.py).

An operation ends on all members alike. In its last moment a member has the whole result and does not know yet whether
all others have it; one whose links break there is left UNDECIDED. It has the broker ask the others: if any of them has
finished the operation, it is finished; if none has, none will, because their links are ended before they answer. So
each member, when its generation has ended, first ends its engine and then says which operation it has finished last.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from broker.collectives import costs, ring
from broker.collectives.claims import INT8_BLOCKS, Claim, CollectiveKind
from broker.errors import BrokerError, TimeoutError
from broker.limits_links import LINK_VERDICT_S
from broker.protocol.bodies import Membership
from broker.protocol.links import Decision, host_name
from broker.schedules import AUTO, HALVING, HIERARCHICAL, RING
from clients.collectives.collective import Prepared
from clients.collectives.reporting import Reporter
from clients.collectives.ways import Engine, Plan, Task, Way
from clients.connection.signals import Signal

if TYPE_CHECKING:
    from clients.collectives.membership import Place
    from clients.connection.operations import Driver

_PENDING, _COMMITTED = int(ring.Outcome.PENDING), int(ring.Outcome.COMMITTED)
_UNDECIDED = int(ring.Outcome.UNDECIDED)
_ROUNDED: Final = ("float16", "bfloat16", INT8_BLOCKS)
"""Each addition loses something: `ring` adds these all at once, and halving does not."""


class Links(Way):
    """A generation's links, as one of its members uses them.

    Attributes:
        reporter: tells the broker of this member's operations.
        reported: whether the broker was told what this member has finished.
        judged: ready when the broker has said what any member has finished, or will not say it.
        verdict: the last operation that any member has finished.
    """

    def __init__(self, links: list[list[int]], told: Membership, rank: int, descriptor: int) -> None:
        """`links` are the descriptors by position, which are the engine's from now on; `descriptor` as for Board.

        Raises:
            InvalidValue, LimitExceeded, OSError: there can be no engine.
        """
        super().__init__(told)
        self.schedule = AUTO
        self._hosts = [host_name(peer.rank, peer.host) for peer in told.peers]
        try:
            self._engine = ring.Engine(links, self.ranks.index(rank), descriptor, self._hosts)
        except BaseException:
            for lanes in links:
                for link in lanes:
                    os.close(link)
            raise
        self.engine = cast("Engine", self._engine)
        self.reporter = Reporter(self._engine, len(self.ranks), 0)
        self.reported = False
        self.judged = Signal()
        self.verdict = 0
        self._committed = 0
        self._under_way: list[Task] = []

    def decided(self, told: Decision) -> None:
        """The broker has decided how operations go, and how often it wants to hear of them."""
        self.schedule = told.schedule
        self.reporter = Reporter(self._engine, len(self.ranks), max(0, told.report_ms) * 1_000_000)

    def make_plan(self, claim: Claim, words: bytes, root: int, *, impossible: bool) -> Plan:
        """See Way."""
        size_bytes = claim.nbytes * (len(self.ranks) if claim.kind is CollectiveKind.ALL_GATHER else 1)
        schedule = self.schedule
        if schedule == AUTO:
            schedule = costs.choose(size_bytes, len(self.ranks), self._hosts)
            if schedule == HALVING and claim.dtype in _ROUNDED:
                schedule = RING
        return ring.Plan(
            claim.kind, words, len(self.ranks),
            op=claim.op, dtype=claim.dtype, array_bytes=claim.nbytes, root=root, impossible=impossible,
            schedule=schedule,
        )  # fmt: skip

    @property
    def used(self) -> str:
        """See Way."""
        if self.schedule == AUTO:
            return HIERARCHICAL if costs.has_hierarchy(self._hosts) else RING
        return self.schedule

    def fitted(self, prepared: Prepared) -> Prepared:
        """See Way. Arrays in several places are copied to one."""
        return prepared.packed()

    def task(
        self, plan: Plan, source: object, target: object, timeout_ns: int, *, scratch: bool = False, priority: int = 0
    ) -> Task:
        """See Way."""
        return ring.Task(cast("ring.Plan", plan), source, target, timeout_ns, scratch, priority)

    def run(self, task: Task) -> int:
        """See Way."""
        self._under_way.append(task)
        try:
            return self.engine.run(task)
        finally:
            self._note(task)

    def submit(self, task: Task) -> None:
        """See Way."""
        for done in [each for each in self._under_way if each.status != _PENDING]:
            self._note(done)
        self._under_way.append(task)
        self.engine.submit(task)

    def _note(self, task: Task) -> None:
        """A task has ended. What it has finished is noted before it is forgotten: another thread may ask in between."""
        if task.status == _COMMITTED:
            self._committed = max(self._committed, task.sequence)
        if task.status != _UNDECIDED:
            with suppress(ValueError):
                self._under_way.remove(task)

    @property
    def last_committed(self) -> int | None:
        """What this member has finished last; None while something that has begun may still be finished."""
        tasks = list(self._under_way)
        if any(task.status == _PENDING for task in tasks):
            return None
        return max([self._committed, *(task.sequence for task in tasks if task.status == _COMMITTED)])

    def lost(self, place: Place) -> None:
        """See Way."""
        place.links_broke(self)

    async def settle(self, driver: Driver, task: Task) -> int:
        """See Way."""
        with suppress(TimeoutError):
            await driver.wait(self.judged, LINK_VERDICT_S, "the broker to say what was finished")
        if task.status == _UNDECIDED:
            self._engine.settle(cast("ring.Task", task), committed=task.sequence <= self.verdict)
            self._close_settled()
        return task.status

    def judge(self, verdict: int) -> None:
        """The broker has said what any member has finished."""
        self.verdict = verdict
        self._close_settled()
        self.judged.set()

    def _close_settled(self) -> None:
        """The engine is needed no more when nothing is undecided."""
        if not any(task.status == _UNDECIDED for task in self._under_way):
            self.engine.close()

    def end(self, error: BrokerError) -> None:
        """See Way; here what is in progress is ended too."""
        self._engine.end()
        super().end(error)

    def close(self) -> None:
        """See Way."""
        super().close()
        self.judged.set()
