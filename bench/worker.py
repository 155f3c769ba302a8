"""One worker of a step; see bench.processes for the words that it exchanges with its parent."""

from __future__ import annotations

import importlib
import sys

import msgspec

from bench import contestants
from bench.cases import ROLES
from bench.tasks import Task


def prepare(task: Task) -> None:
    """Imports what a worker with this task needs, and what is worth to be done once for all that are like it."""
    if contestant := contestants.EVERY.get(task.contestant):
        for module in contestant.imports:
            importlib.import_module(module)


def main(task: Task) -> None:
    """Does one part and prints its result."""
    bus = contestants.by_name(task.contestant).connect(task.address, threads=task.threads)
    part = ROLES[task.role](bus, task)
    next(part)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        next(part)
    except StopIteration as done:
        print(msgspec.json.encode(done.value).decode(), flush=True)
    # What some peers have sent ends with their sender, if nobody has begun to read it.
    sys.stdin.readline()
    bus.close()
