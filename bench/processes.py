"""The processes of one step: a broker and its workers, each with a time limit that it cannot outlive.

A worker is started with its task and says `ready` on its standard output; when all are ready the parent says `go` to
all at once; a worker then does its part and prints its result as one line of JSON. It keeps its connections until the
parent says `end`, once all have their results.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from bench.children import Child, StepFailed, end_all, program
from bench.contestant import Contestant
from bench.nursery import Nursery
from bench.tasks import Result, Task

LIMIT_S: Final = 120
"""How long any process of a step may live."""
T = TypeVar("T")


class Team:
    """The processes of one step; leaving the context ends all of them.

    Attributes:
        address: where the broker listens.
    """

    def __init__(self, nursery: Nursery, contestant: Contestant, transport: str) -> None:
        self._nursery = nursery
        self._contestant = contestant
        self._transport = transport
        self._runs = 0
        self.children: list[Child] = []
        self.address = ""

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="tensorbus-bench-")
        try:
            unix = self._transport == "unix"
            wanted = f"unix://{self._directory.name}/socket" if unix else f"{self._transport}://127.0.0.1:0"
            files = Path(self._directory.name) / "broker"
            files.mkdir()
            command = self._contestant.broker_command(wanted, files)
            broker = Child(f"{self._contestant.name} broker", program(command, LIMIT_S))
            self.children.append(broker)
            self.address = broker.line().removeprefix("listening on ")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        try:
            end_all(self.children)
        finally:
            self._directory.cleanup()

    def run(self, tasks: Sequence[Task]) -> list[Result]:
        """Runs workers side by side from start to end.

        Args:
            tasks: one for each worker; they go off in this order.

        Returns:
            Their results, in the same order.

        Raises:
            StepFailed: one of them ended without a result.
        """
        workers = [self.start(task) for task in tasks]
        self.go(workers)
        return self.results(workers)

    def go(self, workers: Sequence[Child]) -> None:
        """Lets workers begin once all are ready.

        Raises:
            StepFailed: one of them ended before.
        """
        try:
            for worker in workers:
                worker.line()
            for worker in workers:
                worker.say("go")
        except StepFailed as failure:
            raise self._with_broker(failure) from failure

    def results(self, workers: Sequence[Child]) -> list[Result]:
        """Waits for workers' results, and lets these workers end.

        Raises:
            StepFailed: one of them ended without a result.
        """
        return self._answers(workers, Result)

    def _answers(self, children: Sequence[Child], kind: type[T]) -> list[T]:
        try:
            answers = [msgspec.json.decode(child.line(), type=kind) for child in children]
            for child in children:
                child.say("end")
        except StepFailed as failure:
            raise self._with_broker(failure) from failure
        return answers

    def _with_broker(self, failure: StepFailed) -> StepFailed:
        broker = self.children[0]
        return StepFailed(f"{failure}; {broker.name}{broker.last_words() or ': no errors'}")

    def run_ranks(self, task: Task) -> list[Result]:
        """As `run`, with the same task for each rank of a group."""
        self._runs += 1
        task = msgspec.structs.replace(task, run=self._runs)
        launcher = self._contestant.launcher(task.world_size, self.address)
        if not launcher:
            return self.run([msgspec.structs.replace(task, rank=rank) for rank in range(task.world_size)])
        asked = msgspec.json.encode(self._whole(task)).decode()
        command = [*launcher, sys.executable, "-m", "bench.launched", asked]
        ranks = Child(f"{self._contestant.name} {task.role}", program(command, LIMIT_S))
        self.children.append(ranks)
        self.go([ranks])
        (results,) = self._answers([ranks], list[Result])
        # A launcher that is ended has not tidied up.
        ranks.wait()
        return results

    def start(self, task: Task) -> Child:
        """Starts a worker, which gets ready by itself."""
        child = Child(f"{self._contestant.name} {task.role}", self._nursery.worker(self._whole(task), LIMIT_S))
        self.children.append(child)
        return child

    def _whole(self, task: Task) -> Task:
        return msgspec.structs.replace(task, contestant=self._contestant.name, address=self.address)
