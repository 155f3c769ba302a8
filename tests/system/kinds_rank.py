"""A rank in a process of its own that goes through all kinds of collectives, checks each, and prints what it sees."""

from __future__ import annotations

import random
import sys

import numpy as np

import clients

PATIENCE_S = 60.0


class Step:
    """One operation, the same on all ranks; its arrays are as they were when it has failed."""

    def __init__(self, group: clients.Group, number: int) -> None:
        self.group = group
        self.chance = random.Random(f"{group.generation} {number}")
        self.ranks = list(group.ranks)
        self.root = self.chance.choice(self.ranks)
        # In a row, on the stages, or past the caches there.
        self.rows = self.chance.choice([1, 500, 40_000])
        self.own = self.filled(group.rank)
        self.out = np.zeros((len(self.ranks) * self.rows, 7), np.float32)

    def filled(self, rank: int) -> np.ndarray:
        """What a rank gives: whole numbers, and a part for each rank."""
        return np.full((len(self.ranks) * self.rows, 7), rank + 1, np.float32)

    def run(self) -> None:
        """Raises what the operation raises."""
        kind = self.chance.choice(["list", "reduce", "gather", "scatter", "exchange", "pass_on", "cancel", "buckets"])
        try:
            getattr(self, kind)()
        except clients.BrokerError:
            assert (self.own == self.group.rank + 1).all(), f"{kind} has failed and changed what was sent"
            assert (self.out == 0).all() or kind in ("pass_on", "buckets"), f"{kind} has failed and changed its out"
            raise

    def list(self) -> None:
        """All reduce."""
        total = sum(rank + 1 for rank in self.ranks)
        self.group.all_reduce([self.own, self.own[0]], out=[self.out, np.zeros(7, np.float32)], timeout_s=PATIENCE_S)
        assert (self.out == total).all()

    def reduce(self) -> None:
        """The root's out changes."""
        self.group.reduce(self.own, self.root, "max", out=self.out, timeout_s=PATIENCE_S)
        assert (self.out == (max(self.ranks) + 1 if self.group.rank == self.root else 0)).all()

    def gather(self) -> None:
        """The root gets all."""
        found = self.group.gather(self.own, self.root, timeout_s=PATIENCE_S)
        assert (found is None) == (self.group.rank != self.root)
        for rank, array in zip(self.ranks, found or [], strict=found is not None):
            assert (array == rank + 1).all()

    def scatter(self) -> None:
        """The root's parts."""
        part = self.out[: self.rows]
        self.group.scatter(
            self.own if self.group.rank == self.root else None, self.root, out=part, timeout_s=PATIENCE_S
        )
        assert (part == self.root + 1).all()

    def exchange(self) -> None:
        """A part of everybody's."""
        self.group.all_to_all(self.own, out=self.out, timeout_s=PATIENCE_S)
        for position, rank in enumerate(self.ranks):
            assert (self.out[position * self.rows : (position + 1) * self.rows] == rank + 1).all()

    def pass_on(self) -> None:
        """Each sends to the next and receives from the one before."""
        if len(self.ranks) == 1:
            return
        at, count = self.ranks.index(self.group.rank), len(self.ranks)
        before, after = self.ranks[at - 1], self.ranks[(at + 1) % count]
        sending = self.group.send(self.own, after, async_op=True, timeout_s=PATIENCE_S)
        try:
            self.group.receive(self.out, before, timeout_s=PATIENCE_S)
        finally:
            failure = sending.exception()
        if failure is not None:
            raise failure
        assert (self.out == before + 1).all()

    def cancel(self) -> None:
        """What one rank gives up ends alike on all."""
        work = self.group.all_gather(self.own, async_op=True, timeout_s=PATIENCE_S)
        if self.group.rank == self.root:
            work.cancel()
        try:
            work.wait()
            ended = 1
        except clients.CollectiveAbortedError:
            ended = 0
        outcomes = [int(each[0]) for each in self.group.all_gather(np.array([ended]), timeout_s=PATIENCE_S)]
        assert len(set(outcomes)) == 1, outcomes

    def buckets(self) -> None:
        """Gradients, with priorities."""
        arrays = [np.full(size, self.group.rank + 1, np.float32) for size in (self.rows, 3, 90_000)]
        buckets = clients.GradientBuckets(self.group, arrays, op="sum", bucket_bytes=100_000, timeout_s=PATIENCE_S)
        for index in reversed(range(len(arrays))):
            buckets.ready(index)
        buckets.wait()
        assert all((array == sum(rank + 1 for rank in self.ranks)).all() for array in arrays)


def main(url: str, rank: int, world_size: int, schedule: str) -> None:
    with clients.connect(url, name=f"rank-{rank}") as bus:
        stop = bus.subscribe("control/stop")
        group = bus.group("kinds", world_size=world_size, rank=rank, timeout_s=30.0, schedule=schedule)
        print(f"joined {group.rank}", flush=True)
        number = 0
        while True:
            try:
                Step(group, number).run()
                number += 1
                if number % 20 == 0:
                    word = np.array([stop.pending])
                    group.broadcast(word, root=group.ranks[0], timeout_s=PATIENCE_S)
                    if word[0]:
                        print(f"stopped ranks={list(group.ranks)}", flush=True)
                        return
                    print("running", flush=True)
            except clients.GenerationChangedError as error:
                number = 0
                print(f"changed {error.generation} lost={error.lost_ranks}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
