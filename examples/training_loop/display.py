"""What is shown of a run while it goes on: a table with progress bars for terminals, lines for everything else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import clients
from examples.training_loop.job import Job

BAR_WIDTH = 24
EVENTS_SHOWN = 5


def render(snapshot: clients.Snapshot, jobs: Sequence[Job], events: Sequence[str]) -> RenderableType:
    """A table with a line for each trainer of each job, and the last events below."""
    table = Table(expand=False)
    for column in ("trainer", "progress", "step", "loss", "step time", "computing", "samples/s", ""):
        table.add_column(column, justify="left" if column in ("trainer", "progress", "") else "right")
    for job in jobs:
        for rank in range(job.trainers):
            name = job.trainer_name(rank)
            table.add_row(name, *_cells(snapshot.trainers.get(name)))
        table.add_section()
    told = [Text(event, style="yellow") for event in events[-EVENTS_SHOWN:]]
    connected = Text(f"{len(snapshot.sessions)} clients connected, {snapshot.dropped} messages dropped", style="dim")
    return Group(table, *told, connected)


def _cells(trainer: clients.TrainerStatus | None) -> list[RenderableType]:
    if trainer is None:
        return [_bar(1, 0), "", "", "", "", "", Text("waiting", style="dim")]
    steps = trainer.values.get("steps", 1.0)
    return [
        _bar(steps, trainer.step + 1),
        f"{trainer.step + 1}/{steps:.0f}",
        f"{trainer.loss:.4f}" if trainer.loss is not None else "",
        _milliseconds(trainer.step_time_s),
        _milliseconds(trainer.compute_time_s),
        f"{trainer.samples_per_s:,.0f}",
        _state(trainer),
    ]


def _bar(total: float, completed: float) -> ProgressBar:
    return ProgressBar(total, completed, width=BAR_WIDTH, complete_style="cyan", finished_style="green")


def _milliseconds(time_s: float | None) -> str:
    return f"{time_s * 1e3:.2f} ms" if time_s is not None else ""


def _state(trainer: clients.TrainerStatus) -> Text:
    if trainer.step + 1 >= trainer.values.get("steps", 0.0):
        return Text("done", style="green")
    if not trainer.present:
        return Text("lost", style="red")
    return Text("straggler", style="yellow") if trainer.straggler else Text("training", style="cyan")


def lines(snapshot: clients.Snapshot, jobs: Sequence[Job]) -> Iterator[str]:
    """A line for each job that is being trained."""
    for job in jobs:
        group = snapshot.groups.get(job.mode)
        present = [trainer for trainer in snapshot.trainers.values() if trainer.group == job.mode and trainer.present]
        if group is None or group.loss is None or not present:
            continue
        step = min(trainer.step for trainer in present) + 1
        times = ", ".join(f"{_milliseconds(trainer.step_time_s)} on rank {trainer.rank}" for trainer in present)
        steps = present[0].values.get("steps", 0.0)
        yield (
            f"{job.mode}: step {step}/{steps:.0f}, loss {group.loss:.4f}, {group.samples_per_s:,.0f} samples/s; "
            f"step time {times}"
        )
