"""SGD and Adam against numbers worked out by hand, and against the published algorithm written as it is printed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from clients import SGD, Adam, InvalidValue, Optimizer


def test_sgd_steps_against_the_gradient() -> None:
    parameter = np.array([1.0, -2.0])
    SGD(0.1).step(parameter, np.array([10.0, 1.0]))
    assert parameter.tolist() == [0.0, -2.1]


def test_momentum_keeps_a_share_of_the_last_direction() -> None:
    parameter, optimizer = np.array([1.0]), SGD(0.5, momentum=0.5)
    # v = 1, p = 1 - 0.5; then v = 0.5 + 2 = 2.5, p = 0.5 - 1.25.
    optimizer.step(parameter, np.array([1.0]))
    assert parameter[0] == 0.5
    optimizer.step(parameter, np.array([2.0]))
    assert parameter[0] == -0.75


def test_nesterov_looks_one_step_ahead() -> None:
    parameter, optimizer = np.array([1.0]), SGD(0.5, momentum=0.5, nesterov=True)
    # v = 1, p = 1 - 0.5 (1 + 0.5); then v = 2.5, p = 0.25 - 0.5 (2 + 1.25).
    optimizer.step(parameter, np.array([1.0]))
    assert parameter[0] == 0.25
    optimizer.step(parameter, np.array([2.0]))
    assert parameter[0] == -1.375


def test_weight_decay_adds_to_the_gradient_and_leaves_it_as_it_is() -> None:
    parameter, gradient = np.array([4.0]), np.array([1.0])
    SGD(0.5, weight_decay=0.25).step(parameter, gradient)
    assert parameter[0] == 3.0
    assert gradient[0] == 1.0


def test_the_first_step_of_adam_is_as_long_as_the_learning_rate() -> None:
    parameter = np.array([1.0, 1.0])
    Adam(0.1, epsilon=0.0).step(parameter, np.array([1e-3, -50.0]))
    assert parameter == pytest.approx([0.9, 1.1], rel=1e-12)


def test_adam_follows_algorithm_1_of_its_paper() -> None:
    random = np.random.default_rng(7)
    parameter = random.normal(size=5)
    expected, mean, square = parameter.copy(), np.zeros(5), np.zeros(5)
    optimizer = Adam(0.01)
    for step in range(1, 21):
        gradient = random.normal(size=5)
        optimizer.step(parameter, gradient)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        mean_hat, square_hat = mean / (1 - 0.9**step), square / (1 - 0.999**step)
        expected = expected - 0.01 * mean_hat / (np.sqrt(square_hat) + 1e-8)
    assert parameter == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [lambda: SGD(0.1, momentum=0.9), Adam])
def test_arrays_by_name_change_as_one_flat_vector_does(make: Callable[[], Optimizer]) -> None:
    flat = np.linspace(-1, 1, 6)
    named = {"weight": flat[:4].copy().reshape(2, 2), "bias": flat[4:].copy()}
    first, second = make(), make()
    for scale in (1.0, -0.5, 2.0):
        gradient = np.arange(6.0) * scale
        first.step(flat, gradient)
        second.step(named, {"weight": gradient[:4].reshape(2, 2), "bias": gradient[4:]})
    assert np.concatenate([named["weight"].ravel(), named["bias"]]).tobytes() == flat.tobytes()


def test_the_dtype_of_the_parameters_stays() -> None:
    parameter, optimizer = np.ones(3, np.float32), Adam()
    optimizer.step(parameter, np.ones(3, np.float32))
    assert parameter.dtype == np.float32
    assert optimizer.state(parameter)["mean."].dtype == np.float32


@pytest.mark.parametrize("make", [lambda: SGD(0.1, momentum=0.9), Adam])
def test_an_optimizer_with_the_state_of_another_goes_on_like_it(make: Callable[[], Optimizer]) -> None:
    first, second = make(), make()
    parameter, gradient = np.array([1.0, 2.0]), np.array([0.5, -1.0])
    first.step(parameter, gradient)
    copy = parameter.copy()
    for name, array in second.state(copy).items():
        array[...] = first.state(parameter)[name]
    first.step(parameter, gradient)
    second.step(copy, gradient)
    assert copy.tobytes() == parameter.tobytes()


def test_gradients_that_do_not_fit_change_nothing() -> None:
    parameters = {"weight": np.ones(2), "bias": np.ones(3)}
    with pytest.raises(InvalidValue, match="bias"):
        SGD(0.1).step(parameters, {"weight": np.ones(2), "bias": np.ones(2)})
    with pytest.raises(InvalidValue, match="names of the gradients"):
        SGD(0.1).step(parameters, {"weight": np.ones(2)})
    assert parameters["weight"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(0.0),
        lambda: SGD(float("nan")),
        lambda: SGD(0.1, momentum=1.0),
        lambda: SGD(0.1, nesterov=True),
        lambda: Adam(beta1=1.0),
        lambda: Adam(beta2=-0.1),
    ],
)
def test_a_setting_outside_of_its_range_is_refused(make: Callable[[], Optimizer]) -> None:
    with pytest.raises(InvalidValue):
        make()


def test_an_optimizer_is_told_apart_in_a_log() -> None:
    assert [repr(SGD(0.5)), repr(Adam())] == ["<SGD learning_rate=0.5>", "<Adam learning_rate=0.001>"]
