"""A monitor: who is in, how the training goes, and who holds it up."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self, cast

from clients.client import Client
from clients.reading.messages import Message

WINDOW_STEPS: Final = 32
"""Step times and throughput are of so many last steps of each trainer."""
STRAGGLER_FACTOR: Final = 1.5
"""A trainer that needs so many times as long as the median of the others of its group is a straggler."""
QUEUE_MESSAGES: Final = 4096
"""Reports that may wait here; older ones are dropped, so that a slow monitor never holds trainers up."""


@dataclass(frozen=True, slots=True)
class TrainerStatus:
    """What one trainer has reported.

    Attributes:
        name: of its client.
        group: of its ranks, empty if it says none.
        rank: in the group.
        present: whether the rank is in the group at the moment.
        step: the last one that it has reported.
        loss: of that step.
        step_time_s: median, in seconds.
        compute_time_s: median of what the trainer itself has used of it, in seconds.
        samples_per_s: throughput.
        straggler: whether it is slower than the others.
        values: other numbers of the last report.
    """

    name: str
    group: str
    rank: int | None
    present: bool
    step: int
    loss: float | None
    step_time_s: float | None
    compute_time_s: float | None
    samples_per_s: float
    straggler: bool
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A group of ranks.

    Attributes:
        name: of the group.
        generation: version of its membership.
        ranks: present ones, ascending.
        lost_ranks: that have gone and not come back, ascending.
        loss: mean of the last losses of the present ranks.
        samples_per_s: throughput of the present ranks together.
        stragglers: ranks that are slower than the others, ascending.
    """

    name: str
    generation: int
    ranks: tuple[int, ...]
    lost_ranks: tuple[int, ...]
    loss: float | None
    samples_per_s: float
    stragglers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a monitor knows at one moment.

    Attributes:
        sessions: names of the connected clients, in the order in which they came.
        groups: by name, in the order in which they were first heard of.
        trainers: by name, in the order in which they were first heard of.
        dropped: messages that the monitor has missed, because it was too slow.
    """

    sessions: tuple[str, ...]
    groups: Mapping[str, GroupStatus]
    trainers: Mapping[str, TrainerStatus]
    dropped: int


@dataclass(slots=True)
class _Trainer:
    group: str = ""
    rank: int | None = None
    step: int = 0
    loss: float | None = None
    step_times_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    compute_times_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    samples: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    values: dict[str, float] = field(default_factory=dict)

    def take(self, report: Mapping[str, object]) -> None:
        """A report has come."""
        numbers = {name: float(value) for name, value in report.items() if isinstance(value, (int, float))}
        if isinstance(report.get("group"), str):
            self.group = str(report["group"])
        if "rank" in numbers:
            self.rank = int(numbers.pop("rank"))
        self.step = int(numbers.pop("step", self.step))
        self.loss = numbers.pop("loss", self.loss)
        if "step_time_s" in numbers:
            self.step_times_s.append(numbers.pop("step_time_s"))
            self.samples.append(numbers.pop("samples", 0.0))
        if "compute_time_s" in numbers:
            self.compute_times_s.append(numbers.pop("compute_time_s"))
        self.values.update(numbers)

    @property
    def pace_s(self) -> float | None:
        """By what stragglers are recognised: with a barrier in each step, the whole step is equally long for all."""
        return _median(self.compute_times_s or self.step_times_s)

    @property
    def samples_per_s(self) -> float:
        """Throughput over the last steps."""
        time_s = sum(self.step_times_s)
        return sum(self.samples) / time_s if time_s else 0.0


@dataclass(slots=True)
class _Group:
    generation: int = 0
    ranks: tuple[int, ...] = ()
    lost_ranks: set[int] = field(default_factory=set)


class Monitor:
    """Listens to metrics and to what the broker says about sessions and groups. Any thread may ask for a snapshot."""

    def __init__(self, bus: Client) -> None:
        """Begins to listen; what the broker still knows of earlier is taken in too.

        Args:
            bus: a client of the monitor's own.
        """
        self._lock = threading.Lock()
        self._sessions: dict[int, str] = {}
        self._last_session = 0
        self._groups: dict[str, _Group] = {}
        self._trainers: dict[str, _Trainer] = {}
        self._subscriptions = [
            bus.subscribe(topic, handler=handler, overflow="drop_oldest", queue_messages=QUEUE_MESSAGES, replay=replay)
            for topic, handler, replay in (
                ("$sys/sessions", self._session, "all"),
                ("$sys/groups/#", self._membership, "all"),
                ("metrics/#", self._report, "latest"),
            )
        ]

    def snapshot(self) -> Snapshot:
        """What is known at this moment."""
        with self._lock:
            trainers = {name: self._trainer_status(name, trainer) for name, trainer in self._trainers.items()}
            groups = {name: _group_status(name, group, trainers.values()) for name, group in self._groups.items()}
            dropped = sum(subscription.dropped for subscription in self._subscriptions)
            return Snapshot(tuple(self._sessions.values()), groups, trainers, dropped)

    def close(self) -> None:
        """Ends the listening; snapshots can still be taken."""
        for subscription in self._subscriptions:
            subscription.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Monitor sessions={len(self._sessions)} groups={len(self._groups)} trainers={len(self._trainers)}>"

    # On the client's own thread.

    def _session(self, message: Message) -> None:
        event = cast("Mapping[str, object]", message.value)
        session, name = cast(int, event["session"]), cast(str, event["name"])
        with self._lock:
            if event["event"] == "opened":
                # Numbers only rise in a broker's life, so this is another broker, which has none of the old sessions.
                if session <= self._last_session:
                    self._sessions.clear()
                self._last_session = session
                self._sessions[session] = name
            else:
                self._sessions.pop(session, None)

    def _membership(self, message: Message) -> None:
        event = cast("Mapping[str, object]", message.value)
        ranks = tuple(cast("Sequence[int]", event["ranks"]))
        with self._lock:
            group = self._groups.setdefault(cast(str, event["group"]), _Group())
            group.generation, group.ranks = cast(int, event["generation"]), ranks
            if event["event"] == "lost":
                group.lost_ranks.add(cast(int, event["rank"]))
            group.lost_ranks -= set(ranks)

    def _report(self, message: Message) -> None:
        # Anybody may publish below metrics/, so what is no report is passed over.
        report = message.value
        if isinstance(report, dict):
            with self._lock:
                self._trainers.setdefault(message.sender, _Trainer()).take(report)

    def _trainer_status(self, name: str, trainer: _Trainer) -> TrainerStatus:
        group = self._groups.get(trainer.group)
        present = group is None or trainer.rank in group.ranks
        others = [
            pace_s
            for other_name, other in self._trainers.items()
            if other_name != name and other.group == trainer.group and (pace_s := other.pace_s) is not None
        ]
        pace_s = trainer.pace_s
        return TrainerStatus(
            name=name,
            group=trainer.group,
            rank=trainer.rank,
            present=present,
            step=trainer.step,
            loss=trainer.loss,
            step_time_s=_median(trainer.step_times_s),
            compute_time_s=_median(trainer.compute_times_s),
            samples_per_s=trainer.samples_per_s,
            straggler=bool(others and pace_s is not None and pace_s > STRAGGLER_FACTOR * statistics.median(others)),
            values=dict(trainer.values),
        )


def _group_status(name: str, group: _Group, trainers: Iterable[TrainerStatus]) -> GroupStatus:
    present = [trainer for trainer in trainers if trainer.group == name and trainer.present]
    losses = [trainer.loss for trainer in present if trainer.loss is not None]
    return GroupStatus(
        name=name,
        generation=group.generation,
        ranks=group.ranks,
        lost_ranks=tuple(sorted(group.lost_ranks)),
        loss=statistics.fmean(losses) if losses else None,
        samples_per_s=sum(trainer.samples_per_s for trainer in present),
        stragglers=tuple(sorted(trainer.rank for trainer in present if trainer.straggler and trainer.rank is not None)),
    )


def _median(values: Sequence[float] | deque[float]) -> float | None:
    return statistics.median(values) if values else None
