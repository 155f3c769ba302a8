"""Starts a broker, a monitor, and for each way of training its trainers and server; gathers their results."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import clients
from examples.training_loop.job import STALENESS, Job
from examples.training_loop.processes import ChildFailed, Processes

PACKAGE = "examples.training_loop"
RUN_TIMEOUT_S = 600.0
"""No run of the example takes nearly so long; something hangs."""
START_TIMEOUT_S = 60.0
"""A process that is not ready by then has failed."""
LOOK_INTERVAL_S = 0.2
"""How often the processes are looked after while their results are waited for."""


@dataclass(frozen=True, slots=True)
class Summary:
    """How one way of training has ended.

    Attributes:
        job: what was trained.
        accuracy: the lowest of all trainers, on test samples.
        loss: of the last step.
        steps: that were made.
        duration_s: of the training without the start of the processes, in seconds.
        identical: whether the parameters of all trainers are the same to the bit.
        lost_ranks: trainers that were killed on the way.
        joined: whether another one has come in the place of one of them.
    """

    job: Job
    accuracy: float
    loss: float
    steps: int
    duration_s: float
    identical: bool
    lost_ranks: tuple[int, ...]
    joined: bool = False


def run(
    jobs: Sequence[Job], out: Path, *, plain: bool, say: Callable[[str], None], admin: str = "off"
) -> list[Summary]:
    """Runs jobs one after the other, with one broker and one monitor, each in a process of its own.

    Args:
        jobs: what to train.
        out: a folder for history.json and logs.
        plain: shows lines in place of a live display.
        say: told of each process that is started or lost.
        admin: host:port of the broker's HTTP interface, or off.

    Raises:
        ChildFailed: a process has failed; all have been ended.
    """
    with Processes(out / "logs") as processes:
        serve = ("serve", "--listen", "tcp://127.0.0.1:0", "--admin", admin)
        broker = processes.start("broker", "broker", *serve, stdout=subprocess.PIPE)
        url = processes.read_line("broker").removeprefix("listening on ")
        say(f"started broker (pid {broker.pid}) at {url}")
        if admin != "off":
            say(processes.read_line("broker"))
        with clients.connect(url, name="launcher") as bus, bus.subscribe("results/#") as results:
            described = json.dumps([job.to_json() for job in jobs])
            shown = ["--plain"] if plain else []
            arguments = ["--url", url, "--jobs", described, "--out", str(out), *shown]
            monitor = processes.start("monitor", f"{PACKAGE}.monitor", *arguments)
            say(f"started monitor (pid {monitor.pid})")
            summaries = [_train(job, url, processes, bus, results, say) for job in jobs]
            bus.publish("control/monitor/stop", None, ack="accepted")
            processes.wait("monitor")
            processes.check()
    return summaries


def _train(
    job: Job,
    url: str,
    processes: Processes,
    bus: clients.Client,
    results: clients.Subscription,
    say: Callable[[str], None],
) -> Summary:
    arguments = ["--url", url, "--job", job.to_json()]
    names = [f"{job.mode}.server"] if job.mode in STALENESS else []
    for name in names:
        say(f"started {name} (pid {processes.start(name, f'{PACKAGE}.server', *arguments).pid})")
    if job.elastic:
        names.append(job.spare_name)
        with bus.subscribe(f"ready/{job.mode}") as ready:
            spare = processes.start(job.spare_name, f"{PACKAGE}.trainer", *arguments)
            say(f"started {job.spare_name} (pid {spare.pid})")
            ready.next(START_TIMEOUT_S)
    for rank in range(job.trainers):
        name = job.trainer_name(rank)
        child = processes.start(name, f"{PACKAGE}.trainer", *arguments, "--rank", str(rank))
        say(f"started {name} (pid {child.pid})")
        names.append(name)
    ended = _gather(job, processes, results, say)
    processes.stop(*names)
    if not ended:
        raise ChildFailed(f"{job.mode}: no trainer is left")
    lost_ranks = tuple(rank for rank in range(job.trainers) if job.trainer_name(rank) not in ended)
    return _summary(job, list(ended.values()), lost_ranks, joined=job.spare_name in ended)


def _gather(
    job: Job, processes: Processes, results: clients.Subscription, say: Callable[[str], None]
) -> dict[str, Mapping[str, object]]:
    """The results of all trainers, by name, but the killed ones, which the others survive, and who came too late."""
    expected = {job.trainer_name(rank) for rank in range(job.trainers)}
    if job.elastic:
        expected.add(job.spare_name)
    ended: dict[str, Mapping[str, object]] = {}
    deadline_s = time.monotonic() + RUN_TIMEOUT_S
    while expected:
        if time.monotonic() > deadline_s:
            raise ChildFailed(f"{job.mode}: no result of {', '.join(sorted(expected))} within {RUN_TIMEOUT_S:g} s")
        try:
            message = results.next(LOOK_INTERVAL_S)
        except clients.TimeoutError:
            for name in processes.check(may_be_killed=f"{job.mode}.trainer-"):
                if name in expected:
                    expected.remove(name)
                    say(f"{name} was killed; the others go on")
        else:
            expected.discard(message.sender)
            result = cast("Mapping[str, object]", message.value)
            if "came_late" in result:
                say(f"{message.sender} came after the end of the training, and is not needed: {result['came_late']}")
            else:
                ended[message.sender] = result
    return ended


def _summary(job: Job, ended: Sequence[Mapping[str, object]], lost_ranks: tuple[int, ...], *, joined: bool) -> Summary:
    last_losses = [float(cast("Sequence[float]", result["losses"])[-1]) for result in ended]
    return Summary(
        job=job,
        accuracy=min(cast(float, result["accuracy"]) for result in ended),
        loss=sum(last_losses) / len(last_losses),
        steps=max(cast(int, result["steps"]) for result in ended),
        duration_s=max(cast(float, result["duration_s"]) for result in ended),
        identical=len({result["digest"] for result in ended}) == 1,
        lost_ranks=lost_ranks,
        joined=joined,
    )
