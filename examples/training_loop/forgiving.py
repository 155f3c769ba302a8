"""More training loops, for ranks that are late, far away, or come and go."""

from __future__ import annotations

import time

import numpy as np

import clients
from examples.training_loop.data import Batches
from examples.training_loop.job import Job
from examples.training_loop.model import Floats, Gradients, Model
from examples.training_loop.step import LOSS, SAMPLES, STOP, Result, optimizer_of, report, totals_of

QUORUM = 0.5
"""The share of the trainers whose gradients make a step."""
INNER_STEPS = 10
DELAY = 2
"""Inner steps between two outer gradients, and until the mean of them is applied."""
COMPRESSION = "int8"
"""Of what travels then; what it loses travels the next time."""
OUTER_MOMENTUM = 0.6
"""The paper's 0.9 is for long runs: over the few dozen outer steps of this one it overshoots."""


def quorum_loop(trainer: clients.Trainer, model: Model, job: Job, result: Result) -> None:
    """As all_reduce_loop, but a step does not wait for trainers that are late.

    What comes too late is in the next step. Sums over samples are reduced, with the number of samples, so the mean is
    that of the samples that are in it, whosever they are.
    """
    batches = Batches(model.train_samples, job.batch_size, job.seed)
    steps = job.epochs * batches.steps_per_epoch
    optimizer = optimizer_of(job)
    state = {"model": model.parameters, "optimizer": optimizer.state(model.parameters)}
    # The state changes after the collective of a step, so there is nothing to roll back.
    elastic = clients.Elastic(trainer.members, state, rollback=False, rejoin=trainer.rejoin, on_change=trainer.changed)
    behind, generation = 0, 0
    for step in elastic.steps(steps):
        with step:
            group = elastic.group
            if group.generation != generation:
                behind, generation = 0, group.generation
            started_s = time.perf_counter()
            if behind:
                # The others have made this step already, without gradients of this rank.
                model.skip()
            gradients = _nothing(model) if behind else _gradients(trainer, model, batches, step.number)
            computed_s = time.perf_counter()
            totals = totals_of(gradients, stopping=trainer.stopping)
            flat = np.concatenate([*(array.ravel() for array in gradients.arrays.values()), totals])
            part = group.all_reduce(flat, "sum", quorum=QUORUM, contribute=not behind)
            behind = part.behind
            totals = flat[-len(totals) :]
            optimizer.step(model.parameters, _views(flat / max(1.0, totals[SAMPLES]), gradients))
            result.losses[step.number] = float(totals[LOSS] / max(1.0, totals[SAMPLES]))
            report(trainer, step.number, steps, result.losses[step.number], gradients, started_s, computed_s)
        # The same on all ranks, so all end with the same step.
        if step.done and totals[STOP]:
            break


def local_sgd_loop(trainer: clients.Trainer, model: Model, job: Job, result: Result) -> None:
    """Every trainer makes steps of its own shards; now and then they take the mean of their parameters."""
    local = clients.LocalSGD(
        trainer.members,
        model.parameters,
        every=INNER_STEPS,
        delay=DELAY,
        compression=COMPRESSION,
        rejoin=trainer.rejoin,
        on_change=trainer.changed,
    )
    _inner_steps(local, trainer, model, job, result)


def diloco_loop(trainer: clients.Trainer, model: Model, job: Job, result: Result) -> None:
    """As local_sgd_loop, but the mean of what they have moved is a step of an optimizer that has momentum."""
    diloco = clients.DiLoCo(
        trainer.members,
        model.parameters,
        every=INNER_STEPS,
        momentum=OUTER_MOMENTUM,
        delay=DELAY,
        compression=COMPRESSION,
        rejoin=trainer.rejoin,
        on_change=trainer.changed,
    )
    _inner_steps(diloco, trainer, model, job, result)


def _inner_steps(local: clients.LocalSGD, trainer: clients.Trainer, model: Model, job: Job, result: Result) -> None:
    batches = Batches(model.train_samples, job.batch_size, job.seed)
    outer_steps = job.epochs * batches.steps_per_epoch // INNER_STEPS
    optimizer = optimizer_of(job)
    for step in local.steps(outer_steps):
        if trainer.stopping:
            break
        started_s = time.perf_counter()
        gradients = _gradients(trainer, model, batches, step)
        computed_s = time.perf_counter()
        mean = {name: array / gradients.samples for name, array in gradients.arrays.items()}
        optimizer.step(model.parameters, mean)
        result.losses[step] = gradients.loss / gradients.samples
        report(trainer, step, outer_steps * INNER_STEPS, result.losses[step], gradients, started_s, computed_s)
    # What the trainers have in common; each has made some steps of its own since.
    for name, array in local.anchor.items():
        model.parameters[name][...] = array


def _gradients(trainer: clients.Trainer, model: Model, batches: Batches, step: int) -> Gradients:
    """Of this rank's share of a step's batch."""
    group = trainer.members
    return model.gradients(batches.shard(step, group.position, len(group.ranks)))


def _nothing(model: Model) -> Gradients:
    return Gradients({name: np.zeros_like(array) for name, array in model.parameters.items()}, 0.0, 0, 0)


def _views(flat: Floats, like: Gradients) -> dict[str, Floats]:
    """The gradients, by name, in one flat array."""
    views, start = {}, 0
    for name, array in like.arrays.items():
        views[name] = flat[start : start + array.size].reshape(array.shape)
        start += array.size
    return views
