"""Device arrays through both kinds of client over every transport, with a stand-in for cupy: see cupy_stand_in.py."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import clients
from broker import devices
from broker.devices import Copies
from broker.limits import PLACED_BYTES_MIN
from tests import cupy_stand_in as stand_in
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread
from tests.clients.test_groups import OPTIONS, on_all_ranks

PATIENCE_S = 60.0
LONG = PLACED_BYTES_MIN
"""Elements of eight bytes: such an array goes in chunks, and in shared memory where there is some."""
ADDRESSES = {
    "inproc": "inproc://devices",
    "tcp": "tcp://127.0.0.1:0",
    "zmq+tcp": "zmq+tcp://127.0.0.1:0",
}


@pytest.fixture(params=["inproc", "tcp", "unix", "zmq+tcp"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServingThread]:
    with ServingThread(ADDRESSES.get(request.param, f"unix://{tmp_path}/broker.sock")) as serving:
        yield serving


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = stand_in.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "_counter", devices._Counter())
    return module


@pytest.mark.parametrize("elements", [3, LONG])
def test_what_is_published_on_one_device_is_received_on_another(
    cupy: ModuleType, bus: clients.Client, other: clients.Client, elements: int
) -> None:
    values = np.arange(float(elements))
    with other.subscribe("a", device="cuda:1") as subscription:
        sent = cupy.array(values, 0)
        bus.publish("a", sent)
        sent[...] = cupy.array(np.zeros(elements))
        stand_in.current_stream().synchronize()
        message = subscription.next(PATIENCE_S)
        assert isinstance(message.value, cupy.ndarray)
        assert message.value is message.value
        assert message.value.device.id == 1
        assert np.array_equal(message.value.peek(), values)
        assert np.array_equal(message.value_on("cpu"), values)
    assert [copy.direction for copy in stand_in.copies] == ["to host", "to device"]
    assert devices.copies() == Copies(1, values.nbytes, 1, values.nbytes)


def test_a_long_message_is_received_into_pinned_memory_unless_it_lies_in_shared(
    cupy: ModuleType, broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    with other.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", cupy.array(np.arange(float(LONG))))
        assert subscription.next(PATIENCE_S).value.shape == (LONG,)
    assert [copy.pinned for copy in stand_in.copies] == [True, broker.url.startswith(("tcp", "zmq"))]


def test_a_state_dict_with_arrays_here_and_there(cupy: ModuleType, bus: clients.Client, other: clients.Client) -> None:
    state = {"step": 7, "layers": [{"weight": cupy.array(np.ones((9, LONG))), "bias": np.zeros(3)}]}
    with other.subscribe("a", device="cuda") as near, other.subscribe("a") as far:
        bus.publish("a", state)
        value, host = near.next(PATIENCE_S).value, far.next(PATIENCE_S).value
    assert (value["step"], host["step"]) == (7, 7)
    assert np.array_equal(value["layers"][0]["weight"].peek(), np.ones((9, LONG)))
    assert isinstance(value["layers"][0]["bias"], cupy.ndarray)
    assert np.array_equal(host["layers"][0]["weight"], np.ones((9, LONG)))


def test_what_a_device_cannot_hold_harms_nobody(cupy: ModuleType, bus: clients.Client, other: clients.Client) -> None:
    with other.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", np.ones(3, ">f8"))
        bus.publish("a", np.ones(3))
        bus.publish("a", "text")
        message = subscription.next(PATIENCE_S)
        with pytest.raises(clients.InvalidValue, match="cuda:0 cannot hold it"):
            _ = message.value
        assert message.value_on("cpu").tolist() == [1.0] * 3
        assert subscription.next(PATIENCE_S).value.peek().tolist() == [1.0] * 3
        assert subscription.next(PATIENCE_S).value == "text"


def test_a_device_that_does_not_exist_is_told_before_anything_is_asked_of_the_broker(
    cupy: ModuleType, bus: clients.Client
) -> None:
    for call in (
        lambda: bus.subscribe("a", device="cuda:9"),
        lambda: bus.respond("a", print, device="cuda:9"),
        lambda: bus.request("a", device="cuda:9"),
    ):
        with pytest.raises(clients.InvalidValue, match="cuda:9.*does not exist here; there is cuda:0, cuda:1"):
            call()


def test_without_cupy_a_device_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, bus: clients.Client
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(clients.InvalidValue, match="needs cupy, which is not installed: pip install"):
        bus.subscribe("a", device="cuda:0")
    with pytest.raises(clients.InvalidValue, match="needs cupy, which is not installed: pip install"):
        bus.publish("a", stand_in.Foreign(np.ones(1)))
    bus.publish("a", np.ones(1), ack="accepted")


def test_requests_and_replies_are_read_where_they_are_wanted(
    cupy: ModuleType, bus: clients.Client, other: clients.Client
) -> None:
    asked = []

    def double(request: clients.Request) -> object:
        asked.append(request.value.device.id)
        return cupy.array(request.value.peek() * 2, 1)

    other.respond("double", double, device="cuda:1")
    for elements in (2, LONG):
        reply = bus.request("double", cupy.array(np.ones(elements)), timeout_s=PATIENCE_S, device="cuda:0")
        assert reply.value.device.id == 0
        assert np.array_equal(reply.value.peek(), np.full(elements, 2.0))
    assert bus.request("double", np.ones(2), timeout_s=PATIENCE_S).value.tolist() == [2.0, 2.0]
    assert asked == [1, 1, 1]


def test_a_handler_gets_arrays_on_its_device(cupy: ModuleType, bus: clients.Client, other: clients.Client) -> None:
    found, came = [], threading.Event()

    def take(message: clients.Message) -> None:
        found.append(message.value.device.id)
        came.set()

    other.subscribe("a", device="cuda:1", handler=take)
    bus.publish("a", np.ones(3))
    assert came.wait(PATIENCE_S)
    assert found == [1]


def test_small_messages_in_a_batch_are_read_on_the_device(
    cupy: ModuleType, bus: clients.Client, other: clients.Client
) -> None:
    with other.subscribe("a", device="cuda:1") as subscription:
        for number in range(300):
            bus.publish("a", {"n": number, "array": np.full(2, number)})
        for number in range(300):
            value = subscription.next(PATIENCE_S).value
            assert value["n"] == number
            assert value["array"].peek().tolist() == [number, number]


def test_the_broker_counts_what_its_clients_have_copied(cupy: ModuleType, broker: ServingThread) -> None:
    with (
        clients.connect(broker.url) as writer,
        clients.connect(broker.url) as reader,
        reader.subscribe("a", device="cuda:0") as subscription,
    ):
        for _ in range(3):
            writer.publish("a", cupy.array(np.ones(2)))
            assert subscription.next(PATIENCE_S).value.peek().tolist() == [1.0, 1.0]
    broker.wait_until_idle()
    assert broker.call(lambda: broker.server.state.latencies.copied) == Copies(3, 48, 3, 48)


# Collectives.

RANKS = 2


@pytest.fixture(params=["star", "auto"])
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(OPTIONS, "schedule", request.param)
    return str(request.param)


def on_each(connect: Connect, work: Callable[[clients.Group], object]) -> list[object]:
    outcomes = on_all_ranks(connect, RANKS, lambda group, _: work(group))
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def expect(array: object, values: object, device: int = 0) -> None:
    assert isinstance(array, stand_in.Array)
    assert array.device.id == device
    assert array.peek().tolist() == np.asarray(values).tolist()


@pytest.mark.parametrize("elements", [4, LONG])
def test_all_reduce_of_device_arrays_is_the_hosts_result(
    cupy: ModuleType, connect: Connect, schedule: str, elements: int
) -> None:
    inputs = [np.arange(float(elements)) * (rank + 1) for rank in range(RANKS)]

    def work(group: clients.Group) -> object:
        mine = cupy.array(inputs[group.rank], group.rank)
        assert group.all_reduce(mine, "mean", timeout_s=PATIENCE_S) is mine
        host = group.all_reduce(inputs[group.rank].copy(), "mean", timeout_s=PATIENCE_S)
        expect(mine, host, group.rank)
        return None

    on_each(connect, work)
    assert devices.copies() == Copies(RANKS, RANKS * elements * 8, RANKS, RANKS * elements * 8)


def test_every_kind_of_collective_takes_device_arrays(cupy: ModuleType, connect: Connect, schedule: str) -> None:
    def work(group: clients.Group) -> object:
        rank, options = group.rank, {"timeout_s": PATIENCE_S}
        own = np.arange(4.0) + 10 * rank
        total = 2 * np.arange(4.0) + 10
        mine = cupy.array(own, rank)
        out = cupy.array(np.zeros(4), rank)
        assert group.all_reduce(mine, out=out, **options) is out
        expect(out, total, rank)
        expect(mine, own, rank)
        reduced = group.reduce(cupy.array(own, rank), 1, **options)
        if rank == 1:
            expect(reduced, total, 1)
        else:
            assert reduced is None
        for each, expected in zip(
            group.all_gather(mine, **options), (np.arange(4.0), np.arange(4.0) + 10), strict=True
        ):
            expect(each, expected, rank)
        expect(group.reduce_scatter(mine, **options), total[2 * rank : 2 * rank + 2], rank)
        parts = [np.arange(4.0)[2 * rank :][:2], 10 + np.arange(4.0)[2 * rank :][:2]]
        expect(group.all_to_all(mine, **options), np.concatenate(parts), rank)
        place = cupy.array(np.zeros(2), rank)
        part = group.scatter(mine if rank == 0 else None, 0, out=place, **options)
        assert part is place
        expect(place, np.arange(4.0)[2 * rank :][:2], rank)
        gathered = np.zeros((RANKS, 4))
        assert group.all_gather(mine, out=gathered, **options) is gathered
        assert gathered.tolist() == [list(np.arange(4.0)), list(np.arange(4.0) + 10)]
        return None

    on_each(connect, work)


def test_a_broadcast_reads_on_the_root_and_writes_on_the_others(
    cupy: ModuleType, connect: Connect, schedule: str
) -> None:
    def work(group: clients.Group) -> object:
        mine = cupy.array(np.full(4, group.rank), group.rank)
        assert group.broadcast(mine, 1, timeout_s=PATIENCE_S) is mine
        expect(mine, [1] * 4, group.rank)
        return None

    on_each(connect, work)
    assert sorted(copy.direction for copy in stand_in.copies) == ["to device", "to host"]


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float32", "float64")])
def test_lists_and_dicts_of_device_arrays(
    cupy: ModuleType, connect: Connect, schedule: str, dtypes: tuple[str, str]
) -> None:
    def work(group: clients.Group) -> object:
        arrays = [cupy.array(np.full((2, 3), group.rank + 1, dtype), group.rank) for dtype in dtypes]
        assert group.all_reduce(arrays, timeout_s=PATIENCE_S) is arrays
        for each in arrays:
            expect(each, np.full((2, 3), 3.0), group.rank)
        named = {"a": arrays[0], "b": arrays[1]}
        for found in group.all_gather(named, timeout_s=PATIENCE_S):
            assert found.keys() == named.keys()
            expect(found["b"], np.full((2, 3), 3.0), group.rank)
        return None

    on_each(connect, work)


def test_asynchronous_work_gives_the_array_when_it_is_waited_for(
    cupy: ModuleType, connect: Connect, schedule: str
) -> None:
    def work(group: clients.Group) -> object:
        mine = cupy.array(np.ones(5), group.rank)
        started = group.all_reduce(mine, async_op=True, timeout_s=PATIENCE_S)
        assert started.wait(PATIENCE_S) is mine
        expect(mine, [2.0] * 5, group.rank)
        return None

    on_each(connect, work)


def test_point_to_point_compression_and_quorums(cupy: ModuleType, connect: Connect, schedule: str) -> None:
    def work(group: clients.Group) -> object:
        mine = cupy.array(np.full(8, 1.0 + group.rank, "float32"), group.rank)
        if group.rank == 0:
            group.send(mine, 1, timeout_s=PATIENCE_S)
        else:
            place = cupy.array(np.zeros(8, "float32"), 1)
            assert group.receive(place, 0, timeout_s=PATIENCE_S) is place
            expect(place, [1.0] * 8, 1)
        assert group.all_reduce(mine, compression="float16", timeout_s=PATIENCE_S) is mine
        expect(mine, [3.0] * 8, group.rank)
        part = group.all_reduce(mine, quorum=RANKS, timeout_s=PATIENCE_S)
        assert part.array is mine
        expect(mine, [6.0] * 8, group.rank)
        return None

    on_each(connect, work)


def test_a_failed_operation_changes_no_device_array(cupy: ModuleType, connect: Connect, schedule: str) -> None:
    def work(group: clients.Group) -> object:
        mine = cupy.array(np.ones(4 + group.rank), group.rank)
        with pytest.raises(clients.CollectiveMismatchError):
            group.all_reduce(mine, timeout_s=PATIENCE_S)
        expect(mine, np.ones(4 + group.rank), group.rank)
        return None

    on_each(connect, work)
    assert all(copy.direction == "to host" for copy in stand_in.copies)


def test_read_only_and_mixed_arrays_are_refused_before_anything_is_begun(
    cupy: ModuleType, connect: Connect, schedule: str
) -> None:
    def work(group: clients.Group) -> object:
        locked = stand_in.Foreign(np.ones(3), read_only=True)
        with pytest.raises(clients.InvalidValue, match="read-only"):
            group.all_reduce(locked, timeout_s=PATIENCE_S)
        with pytest.raises(clients.InvalidValue, match="some on devices"):
            group.all_reduce([cupy.array(np.ones(3)), np.ones(3)], timeout_s=PATIENCE_S)
        # What is only read may be read-only, and the group goes on.
        for each in group.all_gather(locked, timeout_s=PATIENCE_S):
            expect(each, [1.0] * 3)
        return None

    on_each(connect, work)


def test_a_trainer_pulls_parameters_to_its_device(cupy: ModuleType, broker: ServingThread) -> None:
    parameters = {"weight": np.ones((2, 3), "float32"), "bias": np.zeros(2, "float32")}
    with (
        clients.connect(broker.url) as serving,
        clients.ParameterServer(serving, parameters, clients.SGD(1.0)),
        clients.connect(broker.url) as bus,
        clients.Trainer(bus, world_size=1, rank=0) as trainer,
    ):
        pulled = trainer.pull(device="cuda:1").parameters
        expect(pulled["weight"], np.ones((2, 3)), 1)
        expect(pulled["bias"], np.zeros(2), 1)
    assert [copy.direction for copy in stand_in.copies] == ["to device"]
