"""What a model has to do for the loops of trainer.py, and a classifier of digits that does it in plain numpy."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from examples.training_loop.data import Digits
from examples.training_loop.job import Job

Floats = npt.NDArray[np.floating]
HIDDEN_UNITS = 128


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of the loss summed over some samples. Sums, because those of shards add up to that of the whole batch.

    Attributes:
        arrays: by name, as the parameters.
        loss: sum over the samples.
        correct: samples that were classified correctly.
        samples: how many there were.
    """

    arrays: dict[str, Floats]
    loss: float
    correct: int
    samples: int


class Model(Protocol):
    """A model and its data.

    Attributes:
        parameters: the live arrays, by name.
        train_samples: how many samples there are to train with.
    """

    parameters: dict[str, Floats]
    train_samples: int

    def gradients(self, samples: npt.NDArray[np.int64]) -> Gradients:
        """The gradients of some training samples, given by their indices."""
        ...

    def skip(self) -> None:
        """A step is made to which this process gives no gradients."""

    def accuracy(self) -> float:
        """The share of the test samples that is classified correctly."""
        ...


class DigitsModel:
    """A perceptron with one hidden layer: 64 pixels, 128 rectified units, 10 digits; softmax and cross-entropy."""

    def __init__(self, seed: int) -> None:
        self._data = Digits.load(seed)
        self.train_samples = len(self._data.train_labels)
        random = np.random.default_rng(seed)
        pixels, digits = self._data.train_images.shape[1], 10
        # K. He et al., "Delving Deep into Rectifiers", ICCV 2015: variance 2 / inputs keeps the signal's size.
        self.parameters: dict[str, Floats] = {
            "hidden.weight": random.normal(0, np.sqrt(2 / pixels), (pixels, HIDDEN_UNITS)),
            "hidden.bias": np.zeros(HIDDEN_UNITS),
            "output.weight": random.normal(0, np.sqrt(2 / HIDDEN_UNITS), (HIDDEN_UNITS, digits)),
            "output.bias": np.zeros(digits),
        }

    def _forward(self, images: Floats) -> tuple[Floats, Floats]:
        """The hidden activations and the logits."""
        parameters = self.parameters
        hidden = np.maximum(images @ parameters["hidden.weight"] + parameters["hidden.bias"], 0)
        return hidden, hidden @ parameters["output.weight"] + parameters["output.bias"]

    def gradients(self, samples: npt.NDArray[np.int64]) -> Gradients:
        """See Model."""
        images, labels = self._data.train_images[samples], self._data.train_labels[samples]
        hidden, logits = self._forward(images)
        rows = np.arange(len(labels))
        # The largest logit is taken off first, so that no exponential overflows.
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        # Backwards: the derivative of cross-entropy after softmax is the probabilities less the one-hot label.
        logits_gradient = np.exp(log_probabilities)
        logits_gradient[rows, labels] -= 1
        hidden_gradient = (logits_gradient @ self.parameters["output.weight"].T) * (hidden > 0)
        arrays: dict[str, Floats] = {
            "hidden.weight": images.T @ hidden_gradient,
            "hidden.bias": hidden_gradient.sum(axis=0),
            "output.weight": hidden.T @ logits_gradient,
            "output.bias": logits_gradient.sum(axis=0),
        }
        loss = -float(log_probabilities[rows, labels].sum())
        return Gradients(arrays, loss, int((logits.argmax(axis=1) == labels).sum()), len(labels))

    def skip(self) -> None:
        """See Model."""

    def accuracy(self) -> float:
        """See Model."""
        _, logits = self._forward(self._data.test_images)
        return float((logits.argmax(axis=1) == self._data.test_labels).mean())


class TroubledModel:
    """A model on a machine that is slower than the others, or kills its process on the way."""

    def __init__(self, model: Model, late_s: float, steps_max: int | None) -> None:
        """Args:
        model: that computes.
        late_s: how much longer gradients take, in seconds.
        steps_max: after so many the process is ended by SIGKILL, in the middle of a step; None for never.
        """
        self._model = model
        self._late_s = late_s
        self._steps_left = steps_max
        self.parameters = model.parameters
        self.train_samples = model.train_samples

    def gradients(self, samples: npt.NDArray[np.int64]) -> Gradients:
        """See Model."""
        gradients = self._model.gradients(samples)
        time.sleep(self._late_s)
        self.skip()
        return gradients

    def skip(self) -> None:
        """See Model."""
        if self._steps_left is not None:
            if not self._steps_left:
                os.kill(os.getpid(), signal.SIGKILL)
            self._steps_left -= 1

    def accuracy(self) -> float:
        """See Model."""
        return self._model.accuracy()


def make_model(job: Job) -> Model:
    """The model of a job, with the same parameters in every process."""
    if job.model == "torch":
        from examples.training_loop.torch_model import TextModel

        return TextModel(job.seed)
    return DigitsModel(job.seed)
