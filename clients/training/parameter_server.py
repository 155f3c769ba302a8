"""A parameter server: it holds the parameters of a model and changes them by the gradients that trainers push.

    trainer                                   server
      | request parameters/<group>/layout       |   names, shapes and dtype; once
      | request parameters/<group>/pull         |   -> the parameters as one vector; headers version, step
      | request parameters/<group>/push         |   gradients as one vector; headers rank, step, samples
      |   ... the reply may come later ...      |   -> {"version", "step"}

How far trainers may drift apart is one number, the staleness:

    0      synchronous: gradients wait until every live rank has pushed its step; their mean, formed in the order of the
           ranks, is one step of the optimizer. So a run can be repeated to the bit.
    n > 0  bounded: each gradient is a step at once, and the reply waits while its rank is more than n steps ahead of
           the slowest one. After Q. Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel
           Parameter Server", NIPS 2013.
    None   asynchronous: each gradient is a step at once, and nobody waits.

Who is live is what the broker says about the group that the trainers have joined. A rank that dies is waited for no
longer, and its gradients that were waiting are dropped; a rank that joins begins with the step of the slowest one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar, cast

import numpy as np
import numpy.typing as npt

from broker.errors import BrokerError, InvalidValue
from clients.client import Client
from clients.connection.checks import whole_number
from clients.reading.messages import DEFERRED, Deferred, Message
from clients.training.layout import Layout
from clients.training.optimizers import FloatArray, Optimizer

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Push:
    """Gradients that wait for those of the other ranks."""

    gradients: FloatArray
    samples: float


class ParameterServer:
    """Serves one group of trainers until it is closed. All its work is done on the client's own thread.

    Attributes:
        group: the group of the trainers, which is also the server's name.
        staleness: how many steps a rank may be ahead of the slowest; 0 synchronous, None asynchronous.
    """

    def __init__(
        self,
        bus: Client,
        parameters: Mapping[str, FloatArray],
        optimizer: Optimizer,
        *,
        group: str = "train",
        staleness: int | None = 0,
        checkpoint: Mapping[str, npt.NDArray[np.generic]] | None = None,
    ) -> None:
        """Begins to serve.

        Args:
            bus: a client of the server's own.
            parameters: where the training begins; copied. All of float32, or all of float64.
            optimizer: what makes a step of gradients; it sees all parameters as one vector.
            group: the group that the trainers join.
            staleness: see above.
            checkpoint: what `checkpoint` gave to go on from, in place of the values of `parameters`; the optimizer is a
                new one of the same kind.

        Raises:
            InvalidValue: parameters or a staleness that cannot be, or a checkpoint of other parameters.
        """
        if staleness is not None and whole_number("staleness", staleness) < 0:
            raise InvalidValue("staleness", staleness, "must be 0 or more, or None for no bound")
        self.group = group
        self.staleness = staleness
        self._layout = Layout.of(parameters)
        self._flat = self._layout.pack(parameters)
        self._optimizer = optimizer
        self._version = 0
        self._step = 0
        self._steps: dict[int, int] = {}
        """For each live rank how many steps it has completed."""
        self._pushed: dict[int, _Push] = {}
        self._unanswered: dict[int, Message] = {}
        if checkpoint is not None:
            self._restore(checkpoint)
        self._lock = threading.Lock()
        """Guards what the properties show; only the client's own thread changes it."""
        # The members come first: nobody pushes who has not been announced.
        self._subscriptions = [
            bus.subscribe(f"$sys/groups/{group}", handler=self._membership, replay="latest"),
            bus.respond(f"parameters/{group}/layout", lambda request: self._layout.tell()),
            bus.respond(f"parameters/{group}/pull", self._pull),
            bus.respond(f"parameters/{group}/push", self._push),
        ]

    @property
    def version(self) -> int:
        """Steps of the optimizer so far."""
        return self._version

    @property
    def ranks(self) -> tuple[int, ...]:
        """The live ranks, ascending."""
        with self._lock:
            return tuple(sorted(self._steps))

    def parameters(self) -> dict[str, FloatArray]:
        """A copy of the parameters as they are now."""
        with self._lock:
            return self._layout.views(self._flat.copy())

    def checkpoint(self) -> dict[str, npt.NDArray[np.generic]]:
        """A copy of all that another server needs to go on from here; `numpy.savez(file, **checkpoint)` keeps it.

        Its step is that of the slowest rank, so that no gradient that is still to come is taken for one that has come.
        A push of a later step is refused after that (RequestFailed): pull again then, and go on from there. Settings
        of the optimizer, as its learning rate, are not in it.
        """
        with self._lock:
            kept = self._optimizer.state(self._flat)
            return {
                **{f"parameters.{name}": array for name, array in self._layout.views(self._flat.copy()).items()},
                **{f"optimizer.{name}": array.copy() for name, array in kept.items()},
                "version": np.array(self._version),
                "step": np.array(min(self._steps.values(), default=self._step)),
            }

    def _restore(self, checkpoint: Mapping[str, npt.NDArray[np.generic]]) -> None:
        if not isinstance(checkpoint, Mapping):
            raise InvalidValue("checkpoint", checkpoint, "is not the arrays by their names, as numpy.load gives them")
        flat, kept = self._flat, self._optimizer.state(self._flat)
        targets = {f"parameters.{name}": array for name, array in self._layout.views(flat).items()}
        targets |= {f"optimizer.{name}": array for name, array in kept.items()}
        numbers = {"version": np.array(0), "step": np.array(0)}
        targets |= numbers
        if checkpoint.keys() != targets.keys():
            problem = f"are not those of a checkpoint of these parameters and {self._optimizer!r}"
            raise InvalidValue("names of the checkpoint", sorted(checkpoint), problem)
        found = {name: np.asarray(checkpoint[name]) for name in targets}
        for name, target in targets.items():
            saved = found[name]
            if saved.shape != target.shape or saved.dtype != target.dtype:
                problem = f"is not {target.dtype}{list(target.shape)}"
                raise InvalidValue(f"checkpoint {name!r}", f"{saved.dtype}{list(saved.shape)}", problem)
        for name, target in targets.items():
            target[...] = found[name]
        self._version, self._step = int(numbers["version"]), int(numbers["step"])

    def close(self) -> None:
        """Ends the serving; trainers that wait for a reply get RequestFailed."""
        for subscription in self._subscriptions:
            subscription.close()
        while self._unanswered:
            self._unanswered.popitem()[1].reply_error("the parameter server was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ParameterServer {self.group!r} version={self._version} ranks={self.ranks}>"

    # On the client's own thread.

    def _membership(self, message: Message) -> None:
        event = cast("Mapping[str, object]", message.value)
        ranks = cast("Sequence[int]", event["ranks"])
        gone = self._steps.keys() - set(ranks)
        if event["event"] == "lost":
            # Another process may have taken the rank already.
            gone.add(cast(int, event["rank"]))
        with self._lock:
            for rank in gone:
                for known in (self._steps, self._pushed, self._unanswered):
                    known.pop(rank, None)
            for rank in ranks:
                self._admit(rank)
        self._advance()

    def _admit(self, rank: int) -> int:
        """The steps that a rank has completed; one that is new begins where the slowest one is."""
        return self._steps.setdefault(rank, min(self._steps.values(), default=self._step))

    def _pull(self, request: Message) -> Deferred:
        step = self._steps.get(_number(request, "rank", int, "-1"), self._step)
        request.reply(self._flat, headers={"version": str(self._version), "step": str(step)})
        return DEFERRED

    def _push(self, request: Message) -> Deferred:
        rank, step = _number(request, "rank", int), _number(request, "step", int)
        samples = _number(request, "samples", float, "1")
        if not samples > 0:
            raise InvalidValue("header samples", samples, "must be above 0")
        gradients = self._layout.pack(cast("FloatArray | Mapping[str, FloatArray]", request.value))
        with self._lock:
            completed = self._admit(rank)
        if step > completed:
            problem = f"rank {rank} has completed {completed} steps here, so it must push step {completed}: pull first"
            raise InvalidValue("step", step, problem)
        self._unanswered[rank] = request
        # A step that is completed was pushed again because its reply had been lost with a connection.
        if step == completed:
            self._pushed[rank] = _Push(gradients, samples)
        self._advance()
        return DEFERRED

    def _advance(self) -> None:
        if self.staleness != 0:
            for rank, push in self._pushed.items():
                self._optimize(push.gradients, [rank])
            self._pushed.clear()
        elif self._pushed and self._pushed.keys() >= self._steps.keys():
            pushes = [push for _, push in sorted(self._pushed.items())]
            self._optimize(_mean(pushes), list(self._pushed))
            self._pushed.clear()
        self._answer()

    def _optimize(self, gradients: FloatArray, ranks: Sequence[int]) -> None:
        with self._lock:
            self._optimizer.step(self._flat, gradients)
            self._version += 1
            for rank in ranks:
                self._steps[rank] += 1
                self._step = max(self._step, self._steps[rank])

    def _answer(self) -> None:
        """Replies to every rank that may go on."""
        slowest = min(self._steps.values(), default=0)
        for rank, request in list(self._unanswered.items()):
            ahead = self._steps[rank] - slowest
            if rank not in self._pushed and (self.staleness is None or ahead <= self.staleness):
                del self._unanswered[rank]
                self._reply(rank, request)

    def _reply(self, rank: int, request: Message) -> None:
        try:
            request.reply({"version": self._version, "step": self._steps[rank]})
        except BrokerError as error:
            # The others must still get theirs; this one pushes again when it has no reply.
            log.warning("parameter_server.reply_failed group=%r rank=%d cause=%s", self.group, rank, error)


def _mean(pushes: Sequence[_Push]) -> FloatArray:
    """The mean of the gradients, each with the weight of its samples, summed in the order in which they are given."""
    samples = sum(push.samples for push in pushes)
    mean = np.zeros_like(pushes[0].gradients)
    for push in pushes:
        mean += push.gradients * (push.samples / samples)
    return mean


def _number(request: Message, name: str, kind: Callable[[str], T], default: str = "") -> T:
    text = request.headers.get(name, default)
    try:
        return kind(text)
    except ValueError as error:
        raise InvalidValue(f"header {name}", text, "is not the number that is needed here") from error
