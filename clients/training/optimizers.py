"""Optimizers over numpy arrays, for trainers and for a parameter server. They change the parameters in place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real

import numpy as np
import numpy.typing as npt

from broker.errors import InvalidValue

FloatArray = npt.NDArray[np.floating]
Arrays = FloatArray | Mapping[str, FloatArray]


class Optimizer(ABC):
    """Changes parameters by their gradients; it keeps some arrays for each parameter from step to step.

    One optimizer belongs to one set of parameters. Not for several threads at once.
    """

    def __init__(self, learning_rate: float) -> None:
        """Args:
        learning_rate: how far one step goes; may be changed between steps.
        """
        if not isinstance(learning_rate, Real) or not learning_rate > 0:
            raise InvalidValue("learning_rate", learning_rate, "must be a number above 0")
        self.learning_rate: float = learning_rate
        self._kept: dict[str, FloatArray] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} learning_rate={self.learning_rate:g}>"

    def step(self, parameters: Arrays, gradients: Arrays) -> None:
        """Changes the parameters in place.

        Args:
            parameters: one floating-point array, or several by name; the same ones in every step.
            gradients: of the same names and shapes.

        Raises:
            InvalidValue: names or shapes differ; nothing was changed.
        """
        named, named_gradients = _named(parameters), _named(gradients)
        _check(named, named_gradients)
        self.state(named)
        self._apply(named, named_gradients)

    def state(self, parameters: Arrays) -> dict[str, FloatArray]:
        """What the optimizer keeps, by name: the arrays themselves, to save them or to fill them with saved ones."""
        if not self._kept:
            self._kept = self._initial_state(_named(parameters))
        return self._kept

    @abstractmethod
    def _initial_state(self, parameters: Mapping[str, FloatArray]) -> dict[str, FloatArray]: ...

    @abstractmethod
    def _apply(self, parameters: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray]) -> None: ...


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

        v <- momentum v + g          p <- p - learning_rate v
        nesterov:                    p <- p - learning_rate (g + momentum v)

    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013, in the form
    that PyTorch uses, where the learning rate is outside of v.
    """

    def __init__(
        self, learning_rate: float, *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        """Args:
        learning_rate: how far one step goes.
        momentum: the share of the last direction that is kept, from 0 to below 1.
        nesterov: looks one step of the momentum ahead.
        weight_decay: this share of a parameter is added to its gradient (L2 regularisation).

        Raises:
            InvalidValue: a number outside of its range.
        """
        super().__init__(learning_rate)
        _check_share("momentum", momentum)
        if nesterov and not momentum:
            raise InvalidValue("nesterov", nesterov, "needs a momentum above 0")
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay

    def _initial_state(self, parameters: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        if not self.momentum:
            return {}
        return {f"momentum.{name}": np.zeros_like(array) for name, array in parameters.items()}

    def _apply(self, parameters: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray]) -> None:
        for name, parameter in parameters.items():
            self._update(name, parameter, gradients[name])

    def _update(self, name: str, parameter: FloatArray, gradient: FloatArray) -> None:
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameter
        if not self.momentum:
            parameter -= self.learning_rate * gradient
            return
        velocity = self._kept[f"momentum.{name}"]
        velocity *= self.momentum
        velocity += gradient
        direction = gradient + self.momentum * velocity if self.nesterov else velocity
        parameter -= self.learning_rate * direction


class Adam(Optimizer):
    """Adam: D. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv 1412.6980, algorithm 1.

    m <- beta1 m + (1 - beta1) g          p <- p - learning_rate m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)
    v <- beta2 v + (1 - beta2) g^2
    """

    def __init__(
        self, learning_rate: float = 1e-3, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        """Args:
        learning_rate: how far one step goes, at most about so much for each element.
        beta1: decay of the mean of the gradients, from 0 to below 1.
        beta2: decay of the mean of their squares, from 0 to below 1.
        epsilon: keeps the division finite.

        Raises:
            InvalidValue: a number outside of its range.
        """
        super().__init__(learning_rate)
        _check_share("beta1", beta1)
        _check_share("beta2", beta2)
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon

    def _initial_state(self, parameters: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        kept: dict[str, FloatArray] = {"steps": np.zeros(1)}
        for name, array in parameters.items():
            kept[f"mean.{name}"] = np.zeros_like(array)
            kept[f"square.{name}"] = np.zeros_like(array)
        return kept

    def _apply(self, parameters: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray]) -> None:
        self._kept["steps"] += 1
        steps = float(self._kept["steps"][0])
        for name, parameter in parameters.items():
            self._update(name, parameter, gradients[name], steps)

    def _update(self, name: str, parameter: FloatArray, gradient: FloatArray, steps: float) -> None:
        mean, square = self._kept[f"mean.{name}"], self._kept[f"square.{name}"]
        mean *= self.beta1
        mean += (1 - self.beta1) * gradient
        square *= self.beta2
        square += (1 - self.beta2) * gradient * gradient
        scale = np.sqrt(square / (1 - self.beta2**steps))
        scale += self.epsilon
        parameter -= self.learning_rate / (1 - self.beta1**steps) * mean / scale


def _named(arrays: Arrays) -> Mapping[str, FloatArray]:
    return arrays if isinstance(arrays, Mapping) else {"": arrays}


def _check(parameters: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray]) -> None:
    if parameters.keys() != gradients.keys():
        problem = f"are not the names of the parameters, {sorted(parameters)}"
        raise InvalidValue("names of the gradients", sorted(gradients), problem)
    for name, parameter in parameters.items():
        if gradients[name].shape != parameter.shape:
            problem = f"the parameter has shape {parameter.shape}"
            raise InvalidValue(f"gradient {name!r} of shape", gradients[name].shape, problem)


def _check_share(what: str, value: float) -> None:
    if not isinstance(value, Real) or not 0 <= value < 1:
        raise InvalidValue(what, value, "must be a number from 0 to below 1")
