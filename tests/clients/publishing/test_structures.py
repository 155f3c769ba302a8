"""Lists and dicts of arrays as one message, with both kinds of client, over every transport."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest

import clients
from tests.clients.conftest import Connect

PATIENCE_S = 60.0


def weights(version: int, layers: int = 6, length: int = 100_000) -> dict[str, object]:
    """A model's state: large tensors, small ones and plain values."""
    state: dict[str, object] = {"version": version}
    for layer in range(layers):
        state[f"layer.{layer}"] = {
            "weight": np.full((length, 2), version + layer, "float32", order="F" if layer % 2 else "C"),
            "bias": np.full(3, layer, "float64"),
        }
    return state


def check(state: object, version: int, layers: int = 6, length: int = 100_000) -> None:
    """That a state is the one of a version, every element of it."""
    assert list(state) == ["version", *(f"layer.{layer}" for layer in range(layers))]
    assert state["version"] == version
    for layer in range(layers):
        weight, bias = state[f"layer.{layer}"].values()
        assert (weight.shape, weight.dtype.name, bias.tolist()) == ((length, 2), "float32", [layer] * 3)
        assert (weight == version + layer).all()
        assert weight.flags.f_contiguous == bool(layer % 2)


def test_a_state_dict_arrives_as_it_was_published(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("weights/#")
    for version in range(1, 4):
        bus.publish("weights/policy", weights(version))
    for version in range(1, 4):
        message = subscription.next(PATIENCE_S)
        assert message.sequence == version
        check(message.value, version)


@pytest.mark.parametrize("length", [1, 1000, 2000, 2048, 2100, 65_000])
def test_a_structure_of_any_length_arrives(bus: clients.Client, other: clients.Client, length: int) -> None:
    subscription = other.subscribe("sample")
    value = {"tokens": np.arange(length), "reward": 0.5, "text": "x" * length, "none": np.zeros(0)}
    bus.publish("sample", value, headers={"step": "1"})
    received = subscription.next(PATIENCE_S).value
    assert received["tokens"].tolist() == list(range(length))
    assert (received["reward"], received["text"], received["none"].size) == (0.5, "x" * length, 0)


def test_structures_in_close_succession_arrive_in_order(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("samples")
    for number in range(300):
        bus.publish("samples", {"number": number, "array": np.full(number % 50, number)})
    bus.flush(PATIENCE_S)
    for number in range(300):
        value = subscription.next(PATIENCE_S).value
        assert (value["number"], value["array"].tolist()) == (number, [number] * (number % 50))


def test_thousands_of_small_tensors_are_one_message(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("many")
    bus.publish("many", {f"a.rather.long.name.of.layer.{number}": np.full(3, number) for number in range(5000)})
    received = subscription.next(PATIENCE_S).value
    assert [int(array.sum()) for array in received.values()] == [3 * number for number in range(5000)]


def test_the_publisher_may_change_its_arrays_when_publish_has_returned(
    bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("changed")
    state = weights(0)
    for version in range(1, 5):
        for layer, tensors in enumerate(list(state.values())[1:]):
            tensors["weight"][...] = version + layer
        state["version"] = version
        bus.publish("changed", state)
    for version in range(1, 5):
        check(subscription.next(PATIENCE_S).value, version)


def test_a_reader_keeps_an_old_version_until_it_lets_go_of_it(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("weights")
    bus.publish("weights", weights(1))
    old = subscription.next(PATIENCE_S).value
    one_tensor = old["layer.3"]["weight"][5:10]
    for version in range(2, 12):
        bus.publish("weights", weights(version))
        check(subscription.next(PATIENCE_S).value, version)
    check(old, 1)
    del old
    for version in range(12, 20):
        bus.publish("weights", weights(version))
        check(subscription.next(PATIENCE_S).value, version)
    assert (one_tensor == 4).all()


def test_versions_that_nobody_keeps_share_memory(bus: clients.Client, other: clients.Client) -> None:
    subscription = other.subscribe("weights")
    places, gone = set(), threading.Semaphore(0)
    for version in range(8):
        bus.publish("weights", weights(version))
        weight = subscription.next(PATIENCE_S).value["layer.0"]["weight"]
        places.add(weight.ctypes.data)
        weakref.finalize(weight, gone.release)
        del weight
        # The thread that has handed the message over may be the last to let go of it.
        assert gone.acquire(timeout=PATIENCE_S)
    assert len(places) <= 2


def test_a_newcomer_gets_the_newest_version_at_once(bus: clients.Client, connect: Connect) -> None:
    for version in range(1, 4):
        bus.publish("weights", weights(version, layers=2), ack="accepted")
    message = connect("newcomer").subscribe("weights", replay="latest").next(PATIENCE_S)
    assert message.sequence == 3
    check(message.value, 3, layers=2)


def test_requests_and_replies_take_structures(bus: clients.Client, other: clients.Client) -> None:
    def answer(request: clients.Message) -> object:
        return {"doubled": [array * 2 for array in request.value["arrays"]]}

    other.respond("double", answer)
    for length in (3, 50_000):
        reply = bus.request("double", {"arrays": [np.arange(length)] * 2}, timeout_s=PATIENCE_S)
        assert [array.tolist() for array in reply.value["doubled"]] == [list(range(0, 2 * length, 2))] * 2


def test_a_value_that_cannot_be_sent_is_named_by_its_place_and_sends_nothing(
    bus: clients.Client, other: clients.Client
) -> None:
    subscription = other.subscribe("weights")
    with pytest.raises(clients.InvalidValue, match=r'value\["layer.1"\]\["bias"\]: array of dtype'):
        bus.publish("weights", {"layer.0": np.zeros(9), "layer.1": {"bias": np.array([object()])}})
    bus.publish("weights", 1)
    assert subscription.next(PATIENCE_S).value == 1
