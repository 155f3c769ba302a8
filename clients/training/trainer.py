"""A trainer: what one process of a training job needs, whether gradients are all-reduced or go to a parameter server.

With all-reduce, every rank holds the parameters. This loop survives lost ranks, late ones and a restart of the broker:

    step = trainer.synchronise(0, arrays)                       # parameters and the optimizer's state
    while step < steps:
        gradients = compute(shard(step, trainer.position, len(trainer.ranks)))
        try:
            trainer.all_reduce_gradients(gradients)
        except clients.GenerationChangedError:                  # somebody has come
            step = trainer.synchronise(step, arrays)
            continue
        update(gradients)
        step += 1

A rank that is lost needs no more than this: the call that was under way is made again among the survivors, and the
next step's shards are of the ranks that are left. A rank that comes has nothing yet, so all meet in `synchronise`,
which gives everybody the arrays of the rank that has come furthest.

All ranks must agree which of the two has happened, though some may see two changes at once that others see one by one.
They do, by counting: each lost rank makes one generation, and so does each admission. A rank retries only if its
generation has grown by the number of lost ranks; if it has grown by more, somebody has come in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Self, cast

import numpy as np

from broker.devices import read_device, to_device
from broker.errors import (
    ConnectionClosed,
    GenerationChangedError,
    NoResponders,
    ProtocolError,
    ResponderLost,
)
from broker.limits import COLLECTIVE_TIMEOUT_S
from broker.protocol.tensors import Array
from clients.client import Client
from clients.groups import Group
from clients.reading.messages import Message
from clients.training.layout import Layout
from clients.training.optimizers import FloatArray
from clients.training.rejoining import carry_out, change_since, join_when_free

log = logging.getLogger(__name__)

RETRY_DELAY_S: Final = 0.05
"""Between two tries while the parameter server is not there yet."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """Parameters of the server.

    Attributes:
        parameters: by name; the arrays are the caller's own.
        version: steps that the server's optimizer has made.
        step: the step that this rank is to push next.
    """

    parameters: dict[str, FloatArray]
    version: int
    step: int


class Trainer:
    """One rank of a training job. For one thread.

    Attributes:
        group: the group's name.
        world_size: how many ranks the group was made for.
        rank: this trainer's rank, the same for as long as it trains.
        ranks: the ranks that are present, ascending. They change only in a call, and then after on_change.
        generation: the version of the membership that `ranks` is.
    """

    def __init__(
        self,
        bus: Client,
        group: str = "train",
        *,
        world_size: int | None = None,
        rank: int | None = None,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        on_change: Callable[[GenerationChangedError], None] | None = None,
    ) -> None:
        """Joins the group; returns when it has formed.

        Args:
            bus: a client of the trainer's own.
            group: the same on all ranks.
            world_size: how many ranks the group is made for; default: $WORLD_SIZE.
            rank: default: $RANK, and without it the broker gives the lowest free one.
            timeout_s: how long every call here waits for the other ranks, in seconds.
            on_change: told of each change of the members, with the ranks that were lost.

        Raises:
            InvalidValue: no world_size, or a rank outside of it.
            CollectiveError: the rank is taken, the group is full or was made for another world_size.
            RankTimeoutError: the group did not form in time; missing_ranks says who was not there.
        """
        self._bus = bus
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._stop_topics = {"control/stop", f"control/{group}/stop", f"control/{bus.name}/stop"}
        self._stopping = False
        self._layout: Layout | None = None
        # Read by `stopping`, not by a handler: a handler's thread would compete with the trainer's for the connection.
        self._control = bus.subscribe("control/#", overflow="drop_oldest")
        self._group = bus.group(group, world_size=world_size, rank=rank, timeout_s=timeout_s)
        self.group = group
        self.world_size = self._group.world_size
        self.rank = self._group.rank
        self.ranks = self._group.ranks
        self.generation = self._group.generation

    @property
    def position(self) -> int:
        """The index of this rank among the present ones: which shard of the data is its own."""
        return self.ranks.index(self.rank)

    @property
    def members(self) -> Group:
        """The group itself, for `Elastic`, `DiLoCo` and collectives of one's own, whose changes go to `changed`."""
        return self._group

    def changed(self, change: GenerationChangedError) -> None:
        """Takes over a change of the members that a call of `members` has raised."""
        self._only_lost(change)

    def rejoin(self) -> Group:
        """Becomes a member again after the connection was lost.

        Raises:
            CollectiveError: the rank did not become free in time.
        """
        self._rejoin()
        return self._group

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked the trainer to stop, by a message on control/stop, control/<group or name>/stop.

        Ranks may see it at different steps. If all have to stop at the same one, reduce it together with the gradients.
        """
        # Not `pending`: in collectives that do not go through the broker nobody reads what it sends.
        with suppress(TimeoutError, ConnectionClosed):
            while True:
                self._stopping |= self._control.next(0).topic in self._stop_topics
        return self._stopping

    def all_reduce_gradients(self, gradients: Sequence[Array], op: str = "mean") -> None:
        """Reduces gradients over the present ranks, in place and in buckets; again among the survivors if one is lost.

        Args:
            gradients: writable arrays; the same dtypes and shapes on all ranks.
            op: mean, sum, min, max or product.

        Raises:
            GenerationChangedError: somebody has come, or the broker was restarted; no array was changed. Call
                `synchronise`, then compute this step again, for the shards are others now.
            CollectiveMismatchError: the ranks asked for different things.
            RankTimeoutError: `missing_ranks` did not arrive in time.
            ConnectionClosed: the client is closed, or no broker was found in time.
        """
        while True:
            try:
                self._group.all_reduce_many(gradients, op, timeout_s=self._timeout_s)
                return
            except GenerationChangedError as change:
                if not self._only_lost(change):
                    raise
            except ConnectionClosed as error:
                raise self._rejoin() from error

    def broadcast_parameters(self, arrays: Sequence[Array], root: int) -> None:
        """Copies the arrays of one rank to all others.

        Args:
            arrays: writable; the same dtypes and shapes on all ranks.
            root: the rank whose arrays are copied; it must be present.

        Raises:
            GenerationChangedError: the members have changed; no array was changed.
            ConnectionClosed: the connection was lost; no array was changed.
        """
        self._group.broadcast(list(arrays), root, timeout_s=self._timeout_s)

    def synchronise(self, step: int, arrays: Sequence[Array]) -> int:
        """Gives every rank the state of the one that has come furthest; of several, of the lowest.

        To be called by all ranks at the beginning, and after GenerationChangedError. Changes of the members that happen
        meanwhile are dealt with here.

        Args:
            step: how many steps this rank's arrays have behind them.
            arrays: parameters and whatever else makes the state, such as what an optimizer keeps; changed in place.

        Returns:
            The step from which all ranks go on.

        Raises:
            CollectiveMismatchError: another rank is in another call.
            RankTimeoutError: `missing_ranks` did not arrive in time.
            ConnectionClosed: the client is closed, or no broker was found in time.
        """
        while True:
            try:
                steps = [int(each[0]) for each in self._group.all_gather(np.array([step]), timeout_s=self._timeout_s)]
                furthest = max(steps)
                self.broadcast_parameters(arrays, self.ranks[steps.index(furthest)])
                return furthest
            except GenerationChangedError as change:
                self._only_lost(change)
            except ConnectionClosed:
                self._rejoin()

    def finish(self) -> None:
        """Says that the training is over, after the last step, which all ranks have made.

        Whoever joins from now on, or has come since, gets GroupFinishedError in place of waiting for ranks that have
        ended. Nothing happens if the connection is lost.
        """
        with suppress(ConnectionClosed, TimeoutError):
            self._group.finish(generation=self.generation, timeout_s=self._timeout_s)

    def pull(self, *, device: str | None = None) -> Pulled:
        """Gets the parameters from the parameter server, and the step that this rank is to push next.

        Args:
            device: where the parameters are to be, as `cuda:0`: parts of one cupy array then, copied there once.

        Raises:
            InvalidValue: there is no such device here, or cupy is missing.
            TimeoutError: no reply in time.
            NoResponders, ResponderLost: no server has come in time, or come again.
            ConnectionClosed: the client is closed, or no broker was found in time.
            RankTimeoutError: the connection had been lost, and by the time it was back all others had left the group.
            GroupFinishedError: likewise, and they had said that the training is over (`finish`).
        """
        place = read_device(device)
        layout = self._server_layout()
        reply = self._ask("pull", None, {"rank": str(self.rank)})
        flat = layout.pack(cast(FloatArray, reply.value))
        if place is not None:
            flat = cast(FloatArray, to_device(flat, place))
        elif not flat.flags.writeable:
            # It lies in shared memory, which is the server's.
            flat = flat.copy()
        return Pulled(layout.views(flat), int(reply.headers["version"]), int(reply.headers["step"]))

    def push(self, gradients: FloatArray | Mapping[str, FloatArray], *, step: int, samples: int = 1) -> int:
        """Gives gradients to the parameter server; returns when this rank may go on, which its staleness decides.

        Args:
            gradients: by name, as the parameters, or all as one vector, which is not copied.
            step: the step that they are of; one that is pushed again counts once.
            samples: the weight of these gradients in the mean of a synchronous server.

        Returns:
            The version of the parameters.

        Raises:
            InvalidValue: names or shapes are not those of the parameters.
            RequestFailed: the server refuses them; its text says why. A new one may ask to `pull` first.
            NoResponders, ResponderLost: as `pull`.
            TimeoutError: no reply in time: the server, or a rank that it waits for, is slow.
            ConnectionClosed: the client is closed, or no broker was found in time.
            RankTimeoutError, GroupFinishedError: as `pull`.
        """
        flat = self._server_layout().pack(gradients)
        reply = self._ask("push", flat, {"rank": str(self.rank), "step": str(step), "samples": str(samples)})
        match reply.value:
            case {"version": int(version)}:
                return version
        raise ProtocolError(f"the parameter server answered {reply.value!r} to a push")

    def report(
        self,
        step: int,
        *,
        loss: float,
        step_time_s: float,
        samples: int,
        compute_time_s: float | None = None,
        values: Mapping[str, float] | None = None,
    ) -> None:
        """Publishes how the training goes on metrics/<name>, where a Monitor finds it.

        Args:
            step: which step.
            loss: of this step.
            step_time_s: from the beginning of the step to its end, in seconds.
            samples: that this rank has worked on in this step.
            compute_time_s: the part in which it did not wait for others: by it a Monitor recognises stragglers.
            values: other numbers, by name.
        """
        report: dict[str, object] = {
            "group": self.group,
            "rank": self.rank,
            "step": step,
            "loss": loss,
            "step_time_s": step_time_s,
            "samples": samples,
            **(values or {}),
        }
        if compute_time_s is not None:
            report["compute_time_s"] = compute_time_s
        self._bus.publish(f"metrics/{self._bus.name or f'{self.group}-{self.rank}'}", report)

    def leave(self) -> None:
        """Leaves the group in order; the others go on without this rank."""
        self._control.close()
        self._group.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.leave()

    def __repr__(self) -> str:
        return f"<Trainer {self.group!r} rank={self.rank} of {self.ranks} generation={self.generation}>"

    def _only_lost(self, change: GenerationChangedError) -> bool:
        """Takes a change of the members over; says whether ranks were lost and none has come."""
        generations = change.generation - self.generation
        self.generation, self.ranks = change.generation, tuple(change.ranks)
        log.warning("trainer.generation_changed rank=%d change=%s", self.rank, change)
        if self._on_change is not None:
            self._on_change(change)
        return generations == len(change.lost_ranks)

    def _rejoin(self) -> GenerationChangedError:
        """Becomes a member again after the connection, and with it the place in the group, was lost."""
        rejoin = partial(
            self._bus.group, self.group, world_size=self.world_size, rank=self.rank, timeout_s=self._timeout_s
        )
        self._group = cast(Group, carry_out(join_when_free(rejoin, self._timeout_s, time.sleep)))
        change = change_since(self.ranks, self._group)
        self._only_lost(change)
        return change

    def _server_layout(self) -> Layout:
        if self._layout is None:
            self._layout = Layout.read(self._ask("layout", None, {}).value)
        return self._layout

    def _ask(self, what: str, value: object, headers: Mapping[str, str]) -> Message:
        """Asks the parameter server, which may start later than the trainers, and again after a lost connection."""
        self._notice_members()
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            try:
                return self._bus.request(
                    f"parameters/{self.group}/{what}", value, timeout_s=self._timeout_s, headers=headers
                )
            except (NoResponders, ResponderLost):
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(RETRY_DELAY_S)
            except ConnectionClosed:
                self._rejoin()

    def _notice_members(self) -> None:
        """No collective call tells a rank that uses a parameter server of changes, so it looks."""
        # Not the ranks: one that was lost may have been replaced since.
        if self._group.generation != self.generation:
            self._only_lost(change_since(self.ranks, self._group))
