"""A training loop that outlives its ranks.

    elastic = clients.Elastic(group, {"model": parameters, "optimizer": optimizer.state(parameters)})
    for step in elastic.steps(1000):
        with step:
            gradients = compute(shard(step.number, elastic.group.position, len(elastic.group.ranks)))
            elastic.group.all_reduce_many(gradients)
            optimizer.step(parameters, gradients)

A rank is lost or one comes: every present rank finds that out in the same step, because a collective succeeds on all or
on none. The step is undone, all take the state of the rank that has come furthest, and the step is made again, with
the ranks that are present then. So no step is ever half applied, and all ranks have the same bits.

    step ----- done -----> the next one ... the last one -> all wait for one another -> end
     ^  \\
     |   members changed -> undo -> sync_state -----.
     '-----------------------------------------------'

The wait at the end is for newcomers: whoever comes while the others make their last steps gets their state, and ends.
Whoever comes after it gets GroupFinishedError: the others do not answer any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from broker.errors import (
    ConnectionClosed,
    GenerationChangedError,
    GroupFinishedError,
    InvalidValue,
    RankBehindError,
    TimeoutError,
)
from broker.limits import COLLECTIVE_TIMEOUT_S
from clients.collectives.state_sync import arrays_in, changeable, fill, snapshot
from clients.connection.checks import whole_number
from clients.groups import Group
from clients.training.rejoining import carry_out, join_again

log = logging.getLogger(__name__)


class Elastic:
    """The steps of one rank of a group whose members come and go. For one thread.

    Attributes:
        group: of which this rank is a member; another object after `rejoin`.
        state: what makes the model, and is given to newcomers.
    """

    def __init__(
        self,
        group: Group,
        state: object,
        *,
        rollback: bool = True,
        rejoin: Callable[[], Group] | None = None,
        on_change: Callable[[GenerationChangedError], None] | None = None,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
    ) -> None:
        """Args:
        group: a group that has formed.
        state: dicts and lists, nested, of the live arrays and of numbers; the same on all ranks but for the values.
        rollback: keeps a copy of the state during each step, to undo it. False is for steps that change the state only
            after their last collective, which then cost no copy.
        rejoin: joins the group again after the connection was lost; without it that ends the loop.
        on_change: told of each change of the members.
        timeout_s: how long the ranks may take to meet after a change, in seconds.

        Raises:
            InvalidValue: an array of the state cannot be changed in place: it is read-only, or on a device.
        """
        for array in arrays_in(state):
            if not changeable(array):
                problem = "cannot be changed in place; pass writable arrays in host memory"
                raise InvalidValue("state with an array of type", type(array).__name__, problem)
        self.group = group
        self.state = state
        self._rollback = rollback
        self._rejoin = rejoin
        self._on_change = on_change
        self._timeout_s = timeout_s
        self._behind = True
        self._finished = False
        self._made = 0

    def steps(self, count: int, *, made: int = 0) -> Iterator[Step]:
        """The steps that are left until `count` of them are made; each has to be run in a `with` block.

        Args:
            count: of all steps.
            made: how many the state has already, as that of a checkpoint. Where ranks differ, all go on with the state
                of the one that has most, also where this is not the first call and some of them are in a step.

        Raises:
            InvalidValue: `made` is below 0, or a number is no whole one.
            RankTimeoutError: `missing_ranks` did not come after a change, or at the end.
            ConnectionClosed: the connection was lost, and there is no `rejoin`.
            StateMismatchError: the state of another rank does not fit.
            GroupFinishedError: the others have made all steps before this rank could join them; its state is its own.
        """
        count, made = whole_number("count", count), whole_number("made", made)
        if made < 0:
            raise InvalidValue("made", made, "must be 0 or more: the steps that the state has already")
        self._begin(made)
        while True:
            while self._behind:
                self._behind = False
                self._attempt(self._meet)
            number = self._made
            if number >= count:
                if self._end():
                    return
                continue
            step = Step(self, number)
            yield step
            if not step.entered:
                raise InvalidValue("step", number, "was not run: write `with step:` around what it does")

    def _begin(self, made: int) -> None:
        """Sees to it that all meet, unless this rank goes on where it has stopped, where others may wait for it."""
        if self._finished:
            self.group.reopen(timeout_s=self._timeout_s)
            self._finished = False
            # All have come to the same end, and so do to this.
            self._behind = True
        elif made != self._made and not self._behind:
            self._attempt(lambda: self.group.regroup(timeout_s=self._timeout_s))
            self._behind = True
        self._made = made

    def _meet(self) -> None:
        self._made, self.state, _ = self.group.sync_state(self.state, self._made, timeout_s=self._timeout_s)

    def _end(self) -> bool:
        """Whether all have come to the end."""
        generation = self.group.generation
        try:
            if not self._attempt(self.group.barrier):
                return False
        except GroupFinishedError:
            # This rank had lost its connection when the others left the barrier.
            return True
        self._finished = True
        # Without the broker nobody can join.
        with suppress(ConnectionClosed, TimeoutError):
            self.group.finish(generation=generation, timeout_s=self._timeout_s)
        return True

    def _attempt(self, call: Callable[[], None]) -> bool:
        """Whether a call has succeeded; a change of the members makes everybody synchronise."""
        try:
            call()
        except (GenerationChangedError, ConnectionClosed, RankBehindError) as error:
            if not self._survives(error):
                raise
        return not self._behind

    def _survives(self, error: BaseException) -> bool:
        """Whether the loop goes on after an error; then all meet before the next step."""
        if isinstance(error, RankBehindError):
            # The members stay, so it is the next call that tells of the change.
            self.group.regroup(timeout_s=self._timeout_s)
            self._behind = True
            return True
        if isinstance(error, GenerationChangedError):
            change = error
        elif isinstance(error, ConnectionClosed) and self._rejoin is not None:
            self.group, change = carry_out(join_again(self._rejoin, self.group, self._timeout_s, time.sleep))
        else:
            return False
        self._behind = True
        log.warning("elastic.generation_changed rank=%d change=%s", self.group.rank, change)
        if self._on_change is not None:
            self._on_change(change)
        return True

    def __repr__(self) -> str:
        return f"<Elastic {self.group!r}>"


class Step:
    """One try at one step, as a `with` block.

    When the members change in the block, the state is what it was before, and the loop makes the step again. Any other
    exception undoes the step as well, and goes on to the caller.

    Attributes:
        number: of the step, from 0.
        entered: whether the block was begun.
        done: whether it has come to its end.
    """

    def __init__(self, elastic: Elastic, number: int) -> None:
        """Made by `Elastic.steps`."""
        self.number = number
        self.entered = False
        self.done = False
        self._elastic = elastic
        self._before: object = None

    def __enter__(self) -> Self:
        self.entered = True
        if self._elastic._rollback:
            self._before = snapshot(self._elastic.state)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        before, self._before = self._before, None
        self.done = error is None
        if error is None:
            self._elastic._made = self.number + 1
            return False
        if self._elastic._rollback:
            self._elastic.state = fill(self._elastic.state, before)
        return self._elastic._survives(error)

    def __repr__(self) -> str:
        return f"<Step {self.number}>"
