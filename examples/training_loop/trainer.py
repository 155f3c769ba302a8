"""One trainer: two of the training loops, and the process that runs one of all."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Mapping
from typing import cast

import numpy as np
from threadpoolctl import threadpool_limits

import clients
from examples.training_loop import forgiving
from examples.training_loop.data import Batches
from examples.training_loop.job import Job
from examples.training_loop.model import Model, TroubledModel, make_model
from examples.training_loop.step import LOSS, SAMPLES, STOP, Result, optimizer_of, report, totals_of

JOIN_TIMEOUT_S = 60.0
KILLED_AT = 0.25
"""The share of the steps after which the last trainer of an elastic job is killed."""


def train(trainer: clients.Trainer, model: Model, job: Job) -> Result:
    """Trains until all epochs are done or somebody says stop."""
    result = Result()
    started_s = time.monotonic()
    loops = {
        "all-reduce": all_reduce_loop,
        "quorum": forgiving.quorum_loop,
        "local-sgd": forgiving.local_sgd_loop,
        "diloco": forgiving.diloco_loop,
    }
    loops.get(job.mode, parameter_server_loop)(trainer, model, job, result)
    result.duration_s = time.monotonic() - started_s
    result.accuracy = model.accuracy()
    whole = b"".join(np.ascontiguousarray(array).tobytes() for array in model.parameters.values())
    result.digest = hashlib.sha256(whole).hexdigest()
    return result


def all_reduce_loop(trainer: clients.Trainer, model: Model, job: Job, result: Result) -> None:
    """Every rank has the parameters, and makes the same step of the same gradients: those of the whole batch.

    What is summed over the ranks are sums over samples, and the number of samples with them. So the mean is that of the
    whole batch whatever the shards are, also in the step in which a rank is lost and its share with it.
    """
    batches = Batches(model.train_samples, job.batch_size, job.seed)
    steps = job.epochs * batches.steps_per_epoch
    optimizer = optimizer_of(job)
    state = [*model.parameters.values(), *optimizer.state(model.parameters).values()]
    step = trainer.synchronise(0, state)
    while step < steps:
        started_s = time.perf_counter()
        gradients = model.gradients(batches.shard(step, trainer.position, len(trainer.ranks)))
        totals = totals_of(gradients, stopping=trainer.stopping)
        computed_s = time.perf_counter()
        try:
            trainer.all_reduce_gradients([*gradients.arrays.values(), totals], op="sum")
        except clients.GenerationChangedError:
            step = trainer.synchronise(step, state)
            continue
        for array in gradients.arrays.values():
            array /= totals[SAMPLES]
        optimizer.step(model.parameters, gradients.arrays)
        result.losses[step] = float(totals[LOSS] / totals[SAMPLES])
        report(trainer, step, steps, result.losses[step], gradients, started_s, computed_s)
        step += 1
        # Summed like the rest, so all ranks see it in the same step.
        if totals[STOP]:
            break
    trainer.finish()


def parameter_server_loop(trainer: clients.Trainer, model: Model, job: Job, result: Result) -> None:
    """The server has the parameters; a rank gives it the mean of its shard and takes what has come of all."""
    batches = Batches(model.train_samples, job.batch_size, job.seed)
    steps = job.epochs * batches.steps_per_epoch
    pulled = trainer.pull()
    while pulled.step < steps and not trainer.stopping:
        started_s = time.perf_counter()
        step = pulled.step
        _load(model, pulled)
        gradients = model.gradients(batches.shard(step, trainer.position, len(trainer.ranks)))
        computed_s = time.perf_counter()
        mean = {name: array / gradients.samples for name, array in gradients.arrays.items()}
        trainer.push(mean, step=step, samples=gradients.samples)
        result.losses[step] = gradients.loss / gradients.samples
        pulled = trainer.pull()
        report(trainer, step, steps, result.losses[step], gradients, started_s, computed_s)
    trainer.finish()
    _load(model, pulled)


def _load(model: Model, pulled: clients.Pulled) -> None:
    for name, array in model.parameters.items():
        array[...] = pulled.parameters[name]


def run(url: str, job: Job, rank: int | None) -> bool:
    """Connects, trains, and publishes the result; without a rank it waits for one that is lost, and takes its place.

    Returns:
        Whether it has trained: False if all the others had come to their end before.
    """
    name = job.spare_name if rank is None else job.trainer_name(rank)
    # Before the group forms: a rank that is still loading its data would make the others wait in their first step.
    model = make_model(job)
    if rank == job.trainers - 1:
        steps = job.epochs * Batches(model.train_samples, job.batch_size, job.seed).steps_per_epoch
        model = TroubledModel(model, job.late_s, int(KILLED_AT * steps) if job.elastic else None)
    with clients.connect(url, name=name) as bus:
        if rank is None:
            rank = _lost_rank(bus, job)
        try:
            value = _take_part(bus, job, rank, model)
        except clients.GroupFinishedError as error:
            value = {"rank": rank, "came_late": str(error)}
        bus.publish(f"results/{job.mode}/{rank}", value, ack="accepted")
    return "came_late" not in value


def _take_part(bus: clients.Client, job: Job, rank: int, model: Model) -> dict[str, object]:
    """Trains as one of the ranks; what is published of it."""

    def changed(change: clients.GenerationChangedError) -> None:
        event = {"lost_ranks": change.lost_ranks, "ranks": change.ranks, "generation": change.generation}
        bus.publish(f"events/{job.mode}/{rank}", event, lane="control", urgent=True)

    with clients.Trainer(
        bus, job.mode, world_size=job.trainers, rank=rank, timeout_s=JOIN_TIMEOUT_S, on_change=changed
    ) as trainer:
        result = train(trainer, model, job)
    return {
        "rank": rank,
        "steps": len(result.losses),
        "losses": np.array(list(result.losses.values())),
        "accuracy": result.accuracy,
        "digest": result.digest,
        "duration_s": result.duration_s,
    }


def _lost_rank(bus: clients.Client, job: Job) -> int:
    """Waits until a trainer is lost."""
    with bus.subscribe(f"$sys/groups/{job.mode}") as events:
        bus.publish(f"ready/{job.mode}", None, ack="accepted")
        while True:
            event = cast("Mapping[str, object]", events.next().value)
            if event["event"] == "lost":
                return cast(int, event["rank"])


def main() -> None:
    """Runs one rank as a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the broker's address")
    parser.add_argument("--job", required=True, type=Job.from_json, help="what to train, as JSON")
    parser.add_argument("--rank", type=int, help="without it: of the first trainer that is lost")
    arguments = parser.parse_args()
    # The trainers share the cores of one machine: several threads in each would only get in one another's way.
    with threadpool_limits(limits=1):
        run(arguments.url, arguments.job, arguments.rank)


if __name__ == "__main__":
    main()
