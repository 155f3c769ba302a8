"""What one rank of a group does with one other rank, and what it takes back."""

from __future__ import annotations

from broker.limits import COLLECTIVE_TIMEOUT_S
from clients.collectives import channels
from clients.collectives.calls import Calls


class Points(Calls):
    """The part of a Group that does not take all ranks."""

    def send(
        self,
        array: object,
        to_rank: int,
        tag: int = 0,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        priority: int = 0,
    ) -> object:
        """Sends an array to one rank, which receives it; the other ranks have no part in it.

        Sends to one rank under one tag are received in their order. The array waits here until the other rank receives.

        Args:
            array: what is sent; not changed.
            to_rank: another rank that is present.
            tag: from 0 to 65,535; a receive takes what was sent under its own.
            timeout_s: how long the receiver may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting until the other rank has it.
            priority: see all_reduce.

        Raises:
            CollectiveMismatchError: the receiver expects another dtype or shape.
            RankTimeoutError: it did not come in time.
            GenerationChangedError: the membership changed: the other rank may be gone.
        """
        point = channels.send(self._place.member, array, to_rank, tag, timeout_s)
        return self._call_point(point, timeout_s, async_op=async_op, priority=priority)

    def receive(
        self,
        array: object,
        from_rank: int,
        tag: int = 0,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
    ) -> object:
        """Receives what one rank sends; see send.

        Args:
            array: becomes what was sent, which must have its dtype and shape. None takes whatever comes.
            from_rank: another rank that is present.
            tag: that of the send.
            timeout_s: how long the sender may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting.

        Returns:
            The array, or a new one for None; or a Work.
        """
        point = channels.receive(self._place.member, array, from_rank, tag, timeout_s)
        return self._call_point(point, timeout_s, async_op=async_op, priority=0)

    def abort(self) -> bool:
        """Cancels all operations that this rank has in progress, also those that other threads wait for.

        Each fails with CollectiveAbortedError on all ranks, unless it has ended before; see Work.cancel.

        Returns:
            Whether there was one.
        """
        place, way = self._place, self._place.way
        found = way is not None and way.cancel_all()
        with self._driver.lock:
            found = place.give_up([*place.member.pending, *place.channels.pending]) or found
            self._driver.flush()
        return found
