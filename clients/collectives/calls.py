"""How a rank of the synchronous client carries its calls out: on its group's board, or through the broker."""

from __future__ import annotations

from broker.devices.locks import OwnedLock
from clients.collectives import channels, joining, partial, shared_operation
from clients.collectives.collective import GRACE_S, Prepared
from clients.collectives.collective_lists import PreparedList
from clients.collectives.compression import Compression
from clients.collectives.group_base import GroupBase
from clients.collectives.membership import Place
from clients.collectives.partial import Terms
from clients.collectives.staging import note_detour
from clients.connection.checks import check_priority
from clients.connection.driver import Driver
from clients.work import ManyWork, SharedWork, Work


class Calls(GroupBase):
    """Starts what a Group has prepared, and waits for it."""

    def __init__(self, driver: Driver, place: Place, compression: Compression) -> None:
        """Made by `Client.group`."""
        super().__init__(place, compression)
        self._driver = driver
        self._hold = driver.holding.hold()
        self._device_turn = OwnedLock()

    def _start(self, prepared: Prepared, timeout_s: float, priority: int) -> Work:
        place = self._place
        prepared, shared = shared_operation.begin(place, prepared, priority)
        if shared is not None:
            return SharedWork(self._driver, place, shared, prepared, timeout_s + GRACE_S)
        operation, signal = place.start(*prepared.flat(), priority)
        return Work(self._driver, place, operation, signal, prepared, timeout_s + GRACE_S)

    def _decide(self) -> None:
        """Waits, under the lock, until it is known how operations go: moments, when a generation has just begun.

        Raises:
            GenerationChangedError: the members have changed; whoever calls hears of it before they are linked.
        """
        while not self._place.decided.ready:
            self._place.member.raise_change()
            self._driver.block(self._place.decided, joining.DECISION_S, "the members to be linked")

    def _call(self, prepared: Prepared, timeout_s: float, *, async_op: bool = False, priority: int = 0) -> object:
        driver, place = self._driver, self._place
        try:
            if type(priority) is not int or priority:
                check_priority(priority)
            with driver.lock:
                self._decide()
                if async_op:
                    work = self._start(prepared, timeout_s, priority)
                    driver.flush()
                    return work
                prepared, shared = shared_operation.begin(place, prepared)
                if shared is None:
                    operation, signal = place.start(*prepared.flat(), priority)
                    driver.block(signal, timeout_s + GRACE_S, f"{prepared.claim.describe()} in group {place.name!r}")
                    return prepared.finish(operation.finish)
            # Without the lock: the client's other threads go on meanwhile.
            shared.way.run(shared.task)
            return prepared.finish(lambda: driver.run(shared_operation.finish(driver, place, shared)))
        except BaseException:
            # Also what could not begin has failed.
            prepared.abandon()
            raise

    def _reduce_partly(self, array: object, op: str, timeout_s: float, terms: Terms, async_op: bool) -> object:
        """Through the broker, whatever the schedule: it has to decide who is in time."""
        driver, place = self._driver, self._place
        with driver.lock:
            prepared = partial.all_reduce(place.member, array, op, timeout_s, terms)
            note_detour(prepared, "a quorum", place.device_bytes)
            operation, signal = place.start(*prepared.flat())
            prepared = partial.completed(prepared, operation, place.member.rank)
            if async_op:
                work = Work(driver, place, operation, signal, prepared, timeout_s + GRACE_S)
                driver.flush()
                return work
            driver.block(signal, timeout_s + GRACE_S, f"{prepared.claim.describe()} in group {place.name!r}")
            return prepared.finish(operation.finish)

    def _call_list(self, many: PreparedList, timeout_s: float, *, async_op: bool, priority: int) -> object:
        note_detour(many, "a list of arrays", self._place.device_bytes)
        if len(many.operations) == 1 and not async_op:
            return many.complete([self._call(many.operations[0], timeout_s, priority=priority)])
        check_priority(priority)
        # Under one hold of the lock, so that no change of the members comes between two operations: all start in the
        # same generation or none does, as on the other ranks.
        with self._driver.lock:
            self._decide()
            works = [self._start(prepared, timeout_s, priority) for prepared in many.operations]
            self._driver.flush()
        work = ManyWork(works, many.complete)
        return work if async_op else work.wait()

    def _call_point(
        self, point: tuple[int, int, Prepared], timeout_s: float, *, async_op: bool, priority: int
    ) -> object:
        driver, place = self._driver, self._place
        channel, peer, prepared = point
        note_detour(prepared, "send or receive", place.device_bytes)
        check_priority(priority)
        with driver.lock:
            if place.closed is not None:
                raise place.closed.again()
            end = place.channels.end(channel, peer)
            operation, signal = place.start(*prepared.flat(), priority, end)
            place.channels.begun(end, operation)
            prepared = channels.completed(prepared, operation)
            work = Work(driver, place, operation, signal, prepared, timeout_s + GRACE_S)
            driver.flush()
        return work if async_op else work.wait()
