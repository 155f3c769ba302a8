"""The outer loop of LocalSGD and DiLoCo, written once for both kinds of client.

    params     - inner step - inner step - ... - inner step -.            each rank by itself, `every` times
    anchor     -----------------------------------------------+- outer -> the same bits on all ranks
                     outer gradient = anchor - params, its mean over the ranks -> outer optimizer -> anchor

Plain averaging of the parameters is an outer optimizer with learning rate 1 and no momentum: local SGD, S. U. Stich,
"Local SGD Converges Fast and Communicates Little", ICLR 2019. With Nesterov's momentum it is DiLoCo: A. Douillard et
al., "DiLoCo: Distributed Low-Communication Training of Language Models", arXiv 2311.08105, algorithm 1, whose learning
rate of 0.7 and momentum of 0.9 are the defaults here.

With a delay the mean is formed while the next inner steps are made, and applied so many steps later; what a rank has
moved since stays on top of the new anchor.

When the members change, all meet where the outer gradients are reduced: those who have one make this outer step again
among themselves, and a newcomer, which has none, gets the anchor and what the outer optimizer keeps. So does a rank
that has lost its connection and come back, if the others have made an outer step without it.

With compression, what an outer gradient loses on its way is kept and added to the next one.

What waits is a generator. It yields what a call of its group has given, a result or an awaitable, and is sent the
result, or has the error thrown in: the faces in local_sgd.py and aio/local_sgd.py differ in nothing else.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from typing import Final, Generic, Protocol, TypeVar, cast

import numpy as np

from broker.errors import ConnectionClosed, GenerationChangedError, GroupFinishedError, InvalidValue, TimeoutError
from broker.limits import COLLECTIVE_TIMEOUT_S
from clients.collectives.state_sync import Synced
from clients.connection.checks import whole_number
from clients.training.layout import Layout
from clients.training.optimizers import SGD, FloatArray, Optimizer
from clients.training.rejoining import Membership, join_again

log = logging.getLogger(__name__)

OUTER_LEARNING_RATE: Final = 0.7
OUTER_MOMENTUM: Final = 0.9
_FEEDBACK: Final = "outer gradient"
"""The name under which it is kept what compression has lost."""


class OuterWork(Protocol):
    """A Work of either kind of client."""

    def wait(self) -> object:
        """Gives the result, or what gives it when it is awaited."""
        ...


class OuterGroup(Membership, Protocol):
    """What the loop needs of a Group of either kind of client; each call gives its result, or an awaitable of it."""

    @property
    def rank(self) -> int: ...

    def all_reduce(
        self,
        array: object,
        op: str = ...,
        *,
        timeout_s: float = ...,
        async_op: bool = ...,
        compression: str | None = ...,
        feedback: str | None = ...,
    ) -> object: ...

    def barrier(self, *, timeout_s: float = ...) -> object: ...

    def sync_state(self, state: object, step: int = ..., *, timeout_s: float = ...) -> object: ...

    def finish(self, *, generation: int | None = ..., timeout_s: float = ...) -> object: ...

    def reopen(self, *, timeout_s: float = ...) -> object: ...


G = TypeVar("G", bound=OuterGroup)
R = TypeVar("R")
T = TypeVar("T")

Calls = Generator[object, object, T]


class OuterLoop(ABC, Generic[G, R]):
    """The outer loop around inner steps that the program makes with its own optimizer. For one thread, or one task.

    Attributes:
        group: of which this rank is a member; another object after `rejoin`.
        parameters: the live arrays, by name.
        outer_steps: how many outer steps the anchor has behind it, the same on all ranks.
    """

    def __init__(
        self,
        group: G,
        parameters: Mapping[str, FloatArray],
        *,
        every: int,
        outer: Optimizer | None = None,
        delay: int = 0,
        compression: str | None = None,
        rejoin: Callable[[], R] | None = None,
        on_change: Callable[[GenerationChangedError], None] | None = None,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
    ) -> None:
        """Args:
            group: a group that has formed, for this outer loop alone.
            parameters: float32 or float64, all the same; changed in place.
            every: inner steps between two outer gradients.
            outer: what makes steps of outer gradients; the default averages the parameters.
            delay: inner steps that are made while the mean is formed; 0 waits for it.
            compression: of the outer gradients, as for all_reduce; None is the group's. What it loses is in the next
                outer gradient.
            rejoin: joins the group again after the connection was lost; without it that ends the loop.
            on_change: told of each change of the members.
            timeout_s: how long each meeting may take, in seconds: longer than the slowest rank's `every` inner steps
                take longer than the fastest's.

        Raises:
            InvalidValue: an argument out of its range, or parameters of several dtypes.
            CollectiveError: as for all_reduce.
            ConnectionClosed: the connection was lost, and there is no `rejoin`.
        """
        self.group = group
        self.parameters = parameters
        self.outer_steps = 0
        self._every = whole_number("every", every)
        self._delay = whole_number("delay", delay)
        if self._every < 1:
            raise InvalidValue("every", every, "must be at least 1")
        if not 0 <= self._delay < self._every:
            raise InvalidValue("delay", delay, f"must be from 0 to {self._every - 1}, below every")
        self._layout = Layout.of(parameters)
        self._anchor = self._layout.pack(parameters)
        self._outer = SGD(1.0) if outer is None else outer
        self._compression = compression
        self._rejoin = rejoin
        self._on_change = on_change
        self._timeout_s = timeout_s
        self._inner = 0
        self._has_met = False
        self._finished = False
        # While an outer step is under way: the outer gradient, and the parameters of which it was made.
        self._gradient: FloatArray | None = None
        self._sent: FloatArray | None = None
        self._work: OuterWork | None = None
        self._made()

    def _made(self) -> None:
        """The last thing of the constructor: where it can wait, it meets the others."""

    @abstractmethod
    def _pause(self, delay_s: float) -> object:
        """Waits for so long, or gives an awaitable that does."""

    @property
    def anchor(self) -> dict[str, FloatArray]:
        """The parameters after the last outer step, the same to the bit on all ranks; views, not to be changed."""
        return self._layout.views(self._anchor)

    @property
    def _number(self) -> int:
        """Of the inner step that is to be made."""
        return (self.outer_steps + (self._gradient is not None)) * self._every + self._inner

    def _reopen(self) -> Calls[None]:
        """Lets ranks in again, if the loop had come to an end."""
        if self._finished:
            yield self.group.reopen(timeout_s=self._timeout_s)
            self._finished = False

    def _end(self) -> Calls[bool]:
        """Whether all have come to the end."""
        generation = self.group.generation
        try:
            yield self.group.barrier(timeout_s=self._timeout_s)
        except (GenerationChangedError, ConnectionClosed) as error:
            if not self._survives(error):
                raise
            # If this rank had lost its connection, the others may have left the barrier.
            with suppress(GroupFinishedError):
                yield from self._meet()
                return False
            return True
        # Without the broker nobody can join.
        with suppress(ConnectionClosed, TimeoutError):
            yield self.group.finish(generation=generation, timeout_s=self._timeout_s)
        self._finished = True
        return True

    def _step(self) -> Calls[bool]:
        """An inner step was made; whether an outer step has been applied."""
        self._inner += 1
        if self._inner == self._every:
            yield from self._begin()
        if self._gradient is None or self._inner != self._delay:
            return False
        yield from self._finish()
        return True

    def _begin(self) -> Calls[None]:
        """Starts to form the mean of the outer gradients."""
        self._inner = 0
        self._sent = self._layout.pack(self.parameters)
        self._gradient = self._anchor - self._sent
        try:
            self._work = yield from self._reduce(self._gradient)
        except (GenerationChangedError, ConnectionClosed) as error:
            # All ranks learn of it in this outer step, and meet when each has come to its end.
            self._work = None
            if not self._survives(error):
                raise

    def _reduce(self, gradient: FloatArray) -> Calls[OuterWork]:
        work = yield self.group.all_reduce(
            gradient,
            "mean",
            timeout_s=self._timeout_s,
            async_op=True,
            compression=self._compression,
            feedback=_FEEDBACK,
        )
        return cast(OuterWork, work)

    def _finish(self) -> Calls[None]:
        gradient = self._gradient
        assert gradient is not None
        if self._work is not None:
            try:
                yield self._work.wait()
            except (GenerationChangedError, ConnectionClosed) as error:
                self._work = None
                if not self._survives(error):
                    raise
        if self._work is None:
            yield from self._meet()
        else:
            self._apply(gradient)

    def _meet(self) -> Calls[None]:
        """All ranks of the generation: whoever is new gets what the others have; then the outer step under way."""
        while True:
            try:
                state = {
                    "anchor": self._anchor,
                    "outer": self._outer.state(self._anchor),
                    "under_way": self._gradient is not None,
                }
                # Those who have met are ahead of newcomers even before the first outer step.
                claim = self.outer_steps + 1 if self._has_met else 0
                synced = yield self.group.sync_state(state, claim, timeout_s=self._timeout_s)
                step = cast(Synced, synced).step
                if not self._has_met or step > claim:
                    self._gradient = self._sent = None
                    self._load(self._anchor)
                gradient = (yield from self._again()) if state["under_way"] else None
            except GenerationChangedError as change:
                self._tell(change)
                continue
            except ConnectionClosed:
                if self._rejoin is None:
                    raise
                self.group, joined = yield from join_again(self._rejoin, self.group, self._timeout_s, self._pause)
                self._tell(joined)
                continue
            self._has_met, self.outer_steps = True, max(0, step - 1)
            if gradient is not None:
                self._apply(gradient)
            return

    def _again(self) -> Calls[FloatArray | None]:
        """The mean of the outer gradients of those who have one; None if nobody has."""
        has_one = np.array([int(self._gradient is not None)])
        yield self.group.all_reduce(has_one, timeout_s=self._timeout_s, compression="none")
        count = int(has_one[0])
        gradient = np.zeros_like(self._anchor) if self._gradient is None else self._gradient
        work = yield from self._reduce(gradient)
        yield work.wait()
        if not count:
            return None
        gradient *= len(self.group.ranks) / count
        return gradient

    def _apply(self, gradient: FloatArray) -> None:
        """One outer step; what this rank has moved since it began stays on top."""
        self._outer.step(self._anchor, gradient)
        moved = None
        if self._delay and self._sent is not None:
            moved = self._layout.pack(self.parameters) - self._sent
        self._load(self._anchor if moved is None else self._anchor + moved)
        self._gradient = self._sent = self._work = None
        self._inner = self._delay
        self.outer_steps += 1

    def _load(self, flat: FloatArray) -> None:
        for name, view in self._layout.views(flat).items():
            self.parameters[name][...] = view

    def _survives(self, error: GenerationChangedError | ConnectionClosed) -> bool:
        """Whether the loop goes on after an error, with a meeting."""
        if isinstance(error, GenerationChangedError):
            self._tell(error)
            return True
        # Whoever meets the others then joins again first.
        return self._rejoin is not None

    def _tell(self, change: GenerationChangedError) -> None:
        log.warning("local_sgd.generation_changed rank=%d change=%s", self.group.rank, change)
        if self._on_change is not None:
            self._on_change(change)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} outer_steps={self.outer_steps} inner={self._inner}/{self._every}>"


class NesterovLoop(OuterLoop[G, R]):
    """As OuterLoop, with Nesterov's momentum in the outer optimizer."""

    def __init__(
        self,
        group: G,
        parameters: Mapping[str, FloatArray],
        *,
        every: int,
        learning_rate: float = OUTER_LEARNING_RATE,
        momentum: float = OUTER_MOMENTUM,
        delay: int = 0,
        compression: str | None = None,
        rejoin: Callable[[], R] | None = None,
        on_change: Callable[[GenerationChangedError], None] | None = None,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
    ) -> None:
        """Args:
        group: as for LocalSGD, and so is what is not said here.
        parameters: changed in place.
        every: inner steps between two outer gradients.
        learning_rate: of the outer steps.
        momentum: the share of the last outer direction that is kept, above 0.
        delay: inner steps that are made while the mean is formed.
        compression: of the outer gradients.
        rejoin: joins the group again after the connection was lost.
        on_change: told of each change of the members.
        timeout_s: for each meeting, in seconds.
        """
        super().__init__(
            group, parameters, every=every, outer=SGD(learning_rate, momentum=momentum, nesterov=True), delay=delay,
            compression=compression, rejoin=rejoin, on_change=on_change, timeout_s=timeout_s,
        )  # fmt: skip
