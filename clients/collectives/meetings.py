"""How the ranks of a group meet, go on after a change, and part."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from broker.errors import BrokerError
from broker.limits import ANSWER_TIMEOUT_S, COLLECTIVE_TIMEOUT_S
from clients.collectives import joining, state_sync, windows
from clients.collectives.collective import Prepared
from clients.collectives.device_windows import Steps
from clients.collectives.points import Points
from clients.collectives.state_sync import Synced
from clients.connection.checks import check_priority

T = TypeVar("T")


class Meetings(Points):
    """The part of a Group that is about its members."""

    def sync_state(self, state: object, step: int = 0, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> Synced:
        """Gives every rank the state of the one with the highest step; of several, of the lowest rank.

        For the beginning, and after GenerationChangedError: newcomers and ranks that are behind get what they lack. It
        takes memory for the state twice more while it runs.

        Args:
            state: dicts and lists, nested, of arrays, numbers and texts; None for a rank that has none. Where another
                rank's state is taken, arrays are filled in place, dicts and lists entry by entry.
            step: how many steps the state has behind it, from 0.
            timeout_s: how long the ranks may take to arrive, in seconds.

        Returns:
            The step from which all go on, the state, and the rank whose it is; see Synced.

        Raises:
            StateMismatchError: an array of this rank has no counterpart of its dtype and shape, or is read-only;
                nothing was changed here, and the other ranks have the state.
            CollectiveError: as for all_reduce, or no rank has a state; nothing was changed anywhere.
        """
        return self._call_each(state_sync.sync_state(self._place.member, state, step, timeout_s), timeout_s)

    def empty(
        self,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike = "float32",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
    ) -> npt.NDArray[np.generic]:
        """An uninitialised array in memory that the ranks share, if they are all on one host; else an ordinary one.

        To be called by all ranks. `all_reduce(x, out=y)` of two such arrays moves the fewest bytes, if all ranks call
        it with the arrays that the same calls of `empty` gave them. When it fails, x is as it was, and y may hold
        anything. After a failure y is an ordinary array on all ranks, as both are when the members have changed: call
        `empty` again for new ones. In every other call such an array is like any other.

        Args:
            shape: lengths of the axes, the same on all ranks.
            dtype: a numpy dtype, the same on all ranks.
            timeout_s: how long the ranks may take to arrive, in seconds.

        Raises:
            InvalidValue: no tensor has such a shape or dtype.
            CollectiveError: as for all_reduce.
        """
        return self._call_each(windows.empty(self._place, shape, dtype, timeout_s), timeout_s)

    def _call_each(self, calls: Generator[Prepared, object, T], timeout_s: float) -> T:
        """Carries out what is yielded, one after the other, and gives what comes of all.

        What interrupts it is raised where that was yielded: the other ranks may wait for what comes next.
        """
        # What they hold is let go with a call that fails, and not with the error that tells of it.
        with closing(calls):
            try:
                prepared = next(calls)
                while True:
                    try:
                        value = self._call(prepared, timeout_s)
                    except BrokerError:
                        raise
                    except BaseException as interruption:  # noqa: BLE001
                        prepared = calls.throw(interruption)
                    else:
                        prepared = calls.send(value)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]

    def _on_devices(self, steps: Steps, timeout_s: float, priority: int) -> object:
        """As _call_each, of what takes place on devices: one after the other, whichever threads call."""
        check_priority(priority)
        with self._device_turn.taken():
            return self._call_each(steps, timeout_s)

    def regroup(self, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Makes all ranks meet: the members stay, and each of them gets GenerationChangedError.

        For a rank that cannot go on where the others are, as after RankBehindError; then all call sync_state. This rank
        gets the error in its next call, the others in the one that it does not make with them.

        Args:
            timeout_s: how long to wait for the next generation, in seconds.
        """
        with self._driver.lock:
            begun = self._place.regroup()
            self._driver.block(begun, timeout_s, f"another generation of group {self._place.name!r}")

    def finish(self, *, generation: int | None = None, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Says that the members have done what the group is for: nobody is let in from now on.

        After a call that all have made, such as a barrier. Whoever joins after that, or has joined since that call,
        gets GroupFinishedError in place of waiting for ranks that do not call any more. Members can go on to call;
        `reopen` takes it back, and so does the end of the group, when all have left.

        Args:
            generation: in which that call was made; None for the present one.
            timeout_s: how long to wait for the broker, in seconds.

        Raises:
            InvalidValue: there was no such generation yet.
            ConnectionClosed: the connection was lost, and with it the membership.
        """
        self._driver.run(joining.finish(self._driver, self._place, generation, timeout_s))

    def reopen(self, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Takes `finish` back: ranks can join again."""
        self._driver.run(joining.reopen(self._driver, self._place, timeout_s))

    def leave(self) -> None:
        """Leaves in order: the others get GenerationChangedError, pending operations of this rank fail."""
        self._driver.run(joining.leave(self._driver, self._place, ANSWER_TIMEOUT_S))
