"""Training with few meetings: ranks make many steps of their own, and then one together (outer_loop.py)."""

from __future__ import annotations

import time
from collections.abc import Iterator

from clients.groups import Group
from clients.training.outer_loop import NesterovLoop, OuterLoop
from clients.training.rejoining import carry_out


class LocalSGD(OuterLoop[Group, Group]):
    """The outer loop around inner steps that the program makes with its own optimizer. For one thread.

    Making one meets the other ranks; the parameters are then those of the anchor.

    Attributes:
        group: of which this rank is a member; another object after `rejoin`.
        parameters: the live arrays, by name.
        outer_steps: how many outer steps the anchor has behind it, the same on all ranks.
    """

    def _made(self) -> None:
        carry_out(self._meet())

    def _pause(self, delay_s: float) -> object:
        time.sleep(delay_s)
        return None

    def steps(self, outer_steps: int) -> Iterator[int]:
        """Inner steps to make, by their number, until so many outer steps are made.

        At the end all ranks wait for one another, so that a newcomer of that moment has the same parameters. Whoever
        comes later gets GroupFinishedError as it joins or meets the others.
        """
        carry_out(self._reopen())
        while True:
            while self.outer_steps < outer_steps:
                yield self._number
                self.step()
            if carry_out(self._end()):
                return

    def step(self) -> bool:
        """To be called after each inner step; says whether an outer step has been applied.

        Raises:
            CollectiveError: as for all_reduce, but for changes of the members, which are dealt with here.
            GroupFinishedError: the others have made all steps while this rank had no connection.
            ConnectionClosed: the connection was lost, and there is no `rejoin`.
        """
        return carry_out(self._step())


class DiLoCo(NesterovLoop[Group, Group], LocalSGD):
    """As LocalSGD, with Nesterov's momentum in the outer optimizer, so that meetings may be hundreds of steps apart."""
