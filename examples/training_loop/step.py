"""What all training loops do in a step: the optimizer, the totals, the report."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

import clients
from examples.training_loop.job import Job
from examples.training_loop.model import Gradients

MOMENTUM = 0.9
LOSS, CORRECT, SAMPLES, STOP = range(4)
"""Where the totals of a step stand in the array that is reduced together with the gradients."""


@dataclass(slots=True)
class Result:
    """How a run has ended for one trainer.

    Attributes:
        losses: mean loss of each step that it has seen, by step.
        accuracy: on the test samples.
        digest: of the bytes of all parameters, to compare ranks.
        duration_s: of the training, in seconds.
    """

    losses: dict[int, float] = field(default_factory=dict)
    accuracy: float = 0.0
    digest: str = ""
    duration_s: float = 0.0


def optimizer_of(job: Job) -> clients.Optimizer:
    """What makes steps of gradients, in the trainers or in the parameter server."""
    # Asynchronous gradients are steps of their own, each of a share of the batch, so each goes a share of the way. A
    # whole step for each, out of parameters that others have changed since, diverges.
    # With local SGD each trainer steps by its own shard of the batch, whose mean is noisier than that of the whole.
    share = {"ps-async": 1 / job.trainers, "local-sgd": 0.5, "diloco": 0.5}.get(job.mode, 1.0)
    return clients.SGD(job.learning_rate * share, momentum=MOMENTUM)


def totals_of(gradients: Gradients, *, stopping: bool) -> npt.NDArray[np.float64]:
    """What is summed over the ranks besides the gradients."""
    return np.array([gradients.loss, gradients.correct, gradients.samples, stopping], np.float64)


def report(
    trainer: clients.Trainer,
    step: int,
    steps: int,
    loss: float,
    gradients: Gradients,
    started_s: float,
    computed_s: float,
) -> None:
    """Publishes how a step has gone."""
    trainer.report(
        step,
        loss=loss,
        step_time_s=time.perf_counter() - started_s,
        samples=gradients.samples,
        compute_time_s=computed_s - started_s,
        values={"steps": steps},
    )
