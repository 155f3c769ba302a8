"""A rank that carries out random collectives whose results it knows, and comes back whenever its place is lost.

    python -m tests.system.faulty_rank URL RANK WORLD_SIZE SCHEDULE SEED PROGRESS

SCHEDULE is one of a group's, or "links": "auto", at a broker that shares no memory. With "hierarchical" the ranks say
that they are on two hosts in turn. Which operation comes next follows from the seed, the generation and the number of
operations in it, so all ranks take the same one. It prints a line for each thing that matters; times are of
CLOCK_MONOTONIC, in nanoseconds:

    started AT                                its program runs
    joined GENERATION                         it has a place
    whole GENERATION AT                       the first operation with all ranks is done
    over GENERATION DONE ERROR LOST CALLED AT
                                              an operation has failed, after so many that were done in that generation;
                                              when it was called, or waited for, and when that raised
    lost ERROR                                the place is lost
    wrong WORDS                               what must not be

In the file PROGRESS it counts its operations, 8 bytes for each rank.
"""

from __future__ import annotations

import mmap
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

import clients
from clients.collectives import entrance

Array = npt.NDArray[np.generic]
T = TypeVar("T")

BYTES_MAX = 3 << 20
DTYPES = ("float32", "int64", "float16", "uint8")
KINDS = (
    "all_reduce", "all_reduce", "all_reduce", "broadcast", "all_gather", "reduce_scatter", "barrier", "burst",
    "reduce", "gather", "scatter", "all_to_all", "shared", "shared",
)  # fmt: skip
TIMEOUT_S = 25.0
LEFT = 77
"""What is written to an array after a failure, into which a rank that was stopped in the middle may still write."""
RETRY_S = 0.02
PATTERN = np.tile(np.arange(7, dtype=np.int64), BYTES_MAX // 7 + 1)[:BYTES_MAX]
"""Small numbers: their sums are exact in every dtype."""


class Wrong(Exception):
    """What a group must never do."""


class Watched:
    """A group, and when its rank called what has failed: before and after that the rank works, as a program does.

    Attributes:
        called_ns: when the call was made that has failed, or what has failed was waited for.
        failed_ns: when that raised.
    """

    def __init__(self, group: clients.Group) -> None:
        self._group = group
        self.called_ns = self.failed_ns = 0

    def __getattr__(self, name: str) -> object:
        value = getattr(self._group, name)
        return partial(self.watch, value) if callable(value) else value

    def watch(self, function: Callable[..., T], *arguments: object, **options: object) -> T:
        """Calls a function that may wait for other ranks."""
        called_ns = time.monotonic_ns()
        try:
            return function(*arguments, **options)
        except clients.BrokerError:
            self.called_ns, self.failed_ns = called_ns, time.monotonic_ns()
            raise


class Step:
    """One operation: the same on all ranks but for what each puts in."""

    def __init__(self, seed: str, generation: int, number: int, ranks: tuple[int, ...]) -> None:
        chosen = random.Random(f"{seed} {generation} {number}")
        self.kind = chosen.choice(KINDS)
        self.dtype = np.dtype(chosen.choice(DTYPES))
        self.op = chosen.choice(("sum", "max"))
        self.root = chosen.choice(ranks)
        self.ranks = ranks
        size = 0 if chosen.random() < 0.05 else int(2 ** chosen.uniform(0.0, np.log2(BYTES_MAX)))
        self.count = size // self.dtype.itemsize // len(ranks) * len(ranks)
        self.works = chosen.randint(1, 4)

    def contribution(self, rank: int) -> Array:
        """What a rank puts in."""
        return (PATTERN[: self.count] + rank).astype(self.dtype)

    def reduced(self) -> Array:
        """What comes out of a reduction."""
        base = PATTERN[: self.count]
        total = base * len(self.ranks) + sum(self.ranks) if self.op == "sum" else base + max(self.ranks)
        return total.astype(self.dtype)

    def share(self, rank: int) -> slice:
        """A rank's part of an array that is shared out."""
        length, position = self.count // len(self.ranks), self.ranks.index(rank)
        return slice(position * length, (position + 1) * length)

    def __repr__(self) -> str:
        return f"<Step {self.kind} {self.op} {self.dtype}[{self.count}] of {self.ranks}>"


def expect(step: Step, what: str, found: Array, due: Array) -> None:
    """Raises:
    Wrong: they differ.
    """
    if not np.array_equal(found, due):
        places = np.flatnonzero(found != due) if found.shape == due.shape else np.arange(0)
        raise Wrong(f"{step!r}: {what}: {len(places)} differ, from {places[:1]} on, {found[places[:3]]}")


def carry_out(group: clients.Group, step: Step) -> Iterator[None]:
    """Carries a step out; yields for each operation that is done and right, and raises when one has failed."""
    own = step.contribution(group.rank)
    due, array = own, own.copy()
    try:
        if step.kind == "burst":
            yield from burst(group, step, own)
            return
        if step.kind == "shared":
            shared(group, step, own)
            yield
            return
        if step.kind == "all_reduce":
            due = step.reduced()
            group.all_reduce(array, step.op, timeout_s=TIMEOUT_S)
        elif step.kind == "broadcast":
            due = step.contribution(step.root)
            group.broadcast(array, root=step.root, timeout_s=TIMEOUT_S)
        elif step.kind == "all_gather":
            parts = group.all_gather(array, timeout_s=TIMEOUT_S)
            for rank, part in zip(step.ranks, parts, strict=True):
                expect(step, f"the part of rank {rank}", part, step.contribution(rank))
        elif step.kind == "reduce_scatter":
            part = group.reduce_scatter(array, step.op, timeout_s=TIMEOUT_S)
            expect(step, "the share", part, step.reduced()[step.share(group.rank)])
        elif step.kind == "reduce":
            due = step.reduced() if group.rank == step.root else own
            group.reduce(array, step.root, step.op, timeout_s=TIMEOUT_S)
        elif step.kind == "gather":
            found = group.gather(array, step.root, timeout_s=TIMEOUT_S)
            for rank, part in zip(step.ranks, found or [], strict=group.rank == step.root):  # type: ignore[call-overload]
                expect(step, f"the part of rank {rank}", part, step.contribution(rank))
        elif step.kind == "scatter":
            scatter(group, step, array)
        elif step.kind == "all_to_all":
            due = np.concatenate([step.contribution(rank)[step.share(group.rank)] for rank in step.ranks])
            expect(step, "the parts", group.all_to_all(array, timeout_s=TIMEOUT_S), due)  # type: ignore[arg-type]
            due = own
        else:
            group.barrier(timeout_s=TIMEOUT_S)
    except clients.BrokerError:
        expect(step, "after a failure, the array", array, own)
        raise
    expect(step, "the result", array, due)
    yield


def scatter(group: clients.Group, step: Step, array: Array) -> None:
    """Into an array of the caller's, which stays as it is when that fails."""
    part = np.zeros(step.count // len(step.ranks), step.dtype)
    try:
        group.scatter(array if group.rank == step.root else None, step.root, out=part, timeout_s=TIMEOUT_S)
    except clients.BrokerError:
        expect(step, "after a failure, the part", part, np.zeros_like(part))
        raise
    expect(step, "the part", part, step.contribution(step.root)[step.share(group.rank)])


left: list[Array] = []


def shared(group: clients.Group, step: Step, own: Array) -> None:
    """Of arrays in memory that the ranks share, several times, out of place."""
    for array in left:
        expect(step, "what was left after a failure", array, np.full_like(array, LEFT))
    left.clear()
    array = group.empty(step.count, step.dtype, timeout_s=TIMEOUT_S)
    result = group.empty(step.count, step.dtype, timeout_s=TIMEOUT_S)
    array[:] = own
    for _ in range(step.works):
        result[:] = 0
        try:
            group.all_reduce(array, step.op, out=result, timeout_s=TIMEOUT_S)
        except clients.BrokerError:
            expect(step, "after a failure, the array", array, own)
            result[:] = LEFT
            left.append(result)
            raise
        expect(step, "the result", result, step.reduced())


def burst(group: clients.Group, step: Step, own: Array) -> Iterator[None]:
    """Several operations at once."""
    arrays = [own.copy() for _ in range(step.works)]
    works: list[clients.Work] = []
    failures: list[clients.BrokerError] = []
    try:
        for array in arrays:
            works.append(group.all_reduce(array, step.op, timeout_s=TIMEOUT_S, async_op=True))
    except clients.BrokerError as error:
        failures.append(error)
    failed = False
    for work, array in zip(works, arrays, strict=False):
        if is_done(group, work, failures):
            if failed:
                raise Wrong(f"{step!r}: an operation was done behind one that had failed")
            expect(step, "the result", array, step.reduced())
            yield
        else:
            expect(step, "after a failure, the array", array, own)
            failed = True
    for array in arrays[len(works) :]:
        expect(step, "what was not begun", array, own)
    if failures:
        del failures[1:]
        # Taken out: an error keeps the frame that it is raised in, which must not keep the error.
        raise failures.pop()


def is_done(group: clients.Group, work: clients.Work, failures: list[clients.BrokerError]) -> bool:
    """Waits; says whether the operation was done, and else adds why not to the failures."""
    try:
        # What fails behind the first one tells nothing new.
        if failures:
            work.wait(TIMEOUT_S + 5.0)
        else:
            cast(Watched, group).watch(work.wait, TIMEOUT_S + 5.0)
    except clients.BrokerError as error:
        failures.append(error.with_traceback(None))
        return False
    return True


def say(*words: object) -> None:
    """Prints a line."""
    print(*words, flush=True)


def go_on(joined: clients.Group, seed: str, counter: memoryview) -> None:
    """Carries out operations until the place is lost."""
    whole, watched = -1, Watched(joined)
    group = cast(clients.Group, watched)
    while True:
        # Another generation may begin between the two questions; then the next operation says so.
        generation, ranks, done = group.generation, group.ranks, 0
        try:
            while True:
                for _ in carry_out(group, Step(seed, generation, done, ranks)):
                    done += 1
                    counter[0] += 1
                if len(ranks) == group.world_size and whole != generation:
                    whole = generation
                    say("whole", generation, time.monotonic_ns())
        except clients.GenerationChangedError as error:
            lost = ",".join(map(str, error.lost_ranks)) or "-"
            told = type(error).__name__, lost, watched.called_ns, watched.failed_ns
            say("over", generation, done, *told)


def main(url: str, rank: int, world_size: int, schedule: str, seed: str, progress: str) -> None:
    say("started", time.monotonic_ns())
    with open(progress, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    counter = memoryview(memory).cast("Q")[rank : rank + 1]
    wanted = "auto" if schedule == "links" else schedule
    if schedule == "hierarchical":
        entrance.host_identity = lambda: f"host-{rank % 2}"
    while True:
        try:
            with clients.connect(url, name=f"rank-{rank}", reconnect_timeout_s=0.0) as bus:
                group = bus.group("faults", world_size=world_size, rank=rank, timeout_s=TIMEOUT_S, schedule=wanted)
                say("joined", group.generation)
                go_on(group, seed, counter)
        except Wrong as error:
            say("wrong", error)
            return
        except (clients.ConnectionClosed, clients.ConnectError) as error:
            say("lost", type(error).__name__)
            time.sleep(RETRY_S)
        except clients.BrokerError as error:
            # Its own place, until the broker has seen that its connection is gone.
            if "taken" not in str(error):
                say("wrong", repr(error).replace("\n", " "))
                return
            say("lost", type(error).__name__)
            time.sleep(RETRY_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6])
