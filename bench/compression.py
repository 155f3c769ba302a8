"""What compression costs a model: the digits of the example, trained with each of them, with and without feedback.

    python -m bench.compression
    python -m bench.compression --ranks 8 --epochs 60 --compressions int8 top-k:0.001

Ranks are threads with a client each, and a broker in the same process. Every step's gradients are reduced tensor by
tensor. The error is that of one mean of normal numbers: the length of the difference, by that of the exact mean. The
loss is the training loss of the last epoch. Nothing is timed here.
"""

from __future__ import annotations

import argparse
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np

import clients
from clients.collectives import compression
from examples.training_loop.data import Batches
from examples.training_loop.model import DigitsModel

T = TypeVar("T")

COMPRESSIONS: Final = ("none", "float16", "bfloat16", "int8", "top-k:0.1", "top-k:0.01")
BATCH_SIZE: Final = 128
LEARNING_RATE: Final = 0.1
MOMENTUM: Final = 0.9
SAMPLE_ELEMENTS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run has ended: the share of test samples that is classified correctly, and the last epoch's mean loss."""

    accuracy: float
    loss: float


def train(group: clients.Group, name: str, epochs: int, *, feedback: bool) -> Outcome:
    """One rank's part in a run; all end with the same parameters."""
    model = DigitsModel(seed=0)
    batches = Batches(model.train_samples, BATCH_SIZE, 0)
    optimizer = clients.SGD(LEARNING_RATE, momentum=MOMENTUM)
    losses: list[float] = []
    for step in range(epochs * batches.steps_per_epoch):
        gradients = model.gradients(batches.shard(step, group.position, len(group.ranks)))
        reduced = {}
        for key, array in gradients.arrays.items():
            mean = array / gradients.samples
            group.all_reduce(mean, "mean", compression=name, feedback=key if feedback else None)
            reduced[key] = mean
        optimizer.step(model.parameters, reduced)
        losses.append(gradients.loss / gradients.samples)
    return Outcome(model.accuracy(), float(np.mean(losses[-batches.steps_per_epoch :])))


def error_of_a_mean(group: clients.Group, name: str) -> float:
    """The length of the difference from the exact mean, by the length of that."""
    arrays = [np.random.default_rng(rank).normal(size=SAMPLE_ELEMENTS) for rank in range(group.world_size)]
    exact = np.mean(arrays, axis=0)
    array = arrays[group.rank].astype(np.float32)
    group.all_reduce(array, "mean", compression=name)
    return float(np.linalg.norm(array - exact) / np.linalg.norm(exact))


def on_every_rank(ranks: int, function: Callable[[clients.Group], T]) -> T:
    """What rank 0 got of a function that all ranks of a new group have called at once."""
    address = f"inproc://compression-{secrets.token_hex(8)}"
    ready = threading.Barrier(ranks)

    def take_part(rank: int) -> T:
        with clients.connect(address, name=f"rank-{rank}") as bus:
            ready.wait()
            with bus.group("bench", world_size=ranks, rank=rank) as group:
                return function(group)

    with ThreadPoolExecutor(ranks) as pool:
        return next(iter(list(pool.map(take_part, range(ranks)))))


def share_of_bytes(name: str) -> float:
    """What is sent, by what float32 would be."""
    codec = compression.codec(name)
    sample = np.random.default_rng(0).normal(size=SAMPLE_ELEMENTS).astype(np.float32)
    return 1.0 if codec is None else codec.encode(sample, None, None).nbytes / sample.nbytes


def main() -> None:
    """Prints a line for each compression."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--compressions", nargs="+", default=COMPRESSIONS)
    options = parser.parse_args()
    print(f"{options.ranks} ranks, {options.epochs} epochs of the digits, SGD {LEARNING_RATE} with momentum {MOMENTUM}")
    print("compression    bytes   error of a mean   accuracy / loss   with feedback")
    for name in options.compressions:
        error = on_every_rank(options.ranks, partial(error_of_a_mean, name=name))
        runs = [
            on_every_rank(options.ranks, partial(train, name=name, epochs=options.epochs, feedback=feedback))
            for feedback in (False, True)
        ]
        figures = "   ".join(f"{run.accuracy:.4f} / {run.loss:.5f}" for run in runs)
        print(f"{name:12}  {share_of_bytes(name):6.4f}   {error:15.6f}   {figures}", flush=True)


if __name__ == "__main__":
    main()
