"""Wrong arguments are told where they are made and cost nobody anything."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import clients
import clients.aio
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread

WRONG: dict[str, Callable[[clients.Client], object]] = {
    "a fractional queue": lambda bus: bus.subscribe("a", queue_messages=1.5),
    "a float for bytes": lambda bus: bus.subscribe("a", queue_bytes=1e6),
    "endless bytes": lambda bus: bus.subscribe("a", queue_bytes=2**70),
    "a text for a number": lambda bus: bus.subscribe("a", queue_messages="a"),
    "a number for a group": lambda bus: bus.subscribe("a", queue_group=3),
    "an endless sequence": lambda bus: bus.subscribe("a", replay=2**70),
    "no function": lambda bus: bus.subscribe("a", handler=3),
    "no responder": lambda bus: bus.respond("a", 3),
    "a fractional world": lambda bus: bus.group("g", world_size=2.0),
    "a fractional rank": lambda bus: bus.group("g", world_size=2, rank=0.5),
    "no name": lambda bus: bus.group("", world_size=2),
    "not a number of seconds": lambda bus: bus.flush(math.nan),
    "endless seconds": lambda bus: bus.flush(math.inf),
    "a text of seconds": lambda bus: bus.publish("a", np.zeros(10_000), timeout_s="x"),
    "a text of seconds for a small message": lambda bus: bus.publish("a", 1, timeout_s="x"),
    "seconds below 0 for a small message": lambda bus: bus.publish("a", b"1", timeout_s=-1.0),
    "no number of seconds for a small message": lambda bus: bus.publish("a", "1", timeout_s=math.nan),
    "seconds below 0": lambda bus: bus.group("g", world_size=1, timeout_s=-1.0),
    "a fraction of retries": lambda bus: bus.request("a", retries=1.5),
    "a topic in a list": lambda bus: bus.publish(["a"], 1),
    "an acknowledged topic in a list": lambda bus: bus.publish(["a"], 1, ack="accepted"),
    "a large value for a topic in a list": lambda bus: bus.publish(["a"], np.zeros(10_000)),
    "a request at a topic in a dict": lambda bus: bus.request({"a": 1}),
    "a request with retries at a topic in a dict": lambda bus: bus.request({"a": 1}, retries=1),
    "requests at a topic in a set": lambda bus: list(bus.request_many({"a"})),
    "a lane in a list": lambda bus: bus.publish("a", 1, lane=["bulk"]),
    "a lane in a dict": lambda bus: bus.request("a", 1, lane={"bulk": 1}),
    "headers in a list": lambda bus: bus.publish("a", 1, headers=["a"]),
    "half a character in a header": lambda bus: bus.publish("a", 1, headers={"k": "\ud800"}),
    "half a character in a name": lambda bus: bus.group("\ud800", world_size=1),
    "an array of a text": lambda bus: bus.empty("12"),
    "an array of fractions": lambda bus: bus.empty((2, 1.5)),
    "an array below 0": lambda bus: bus.empty((2, -1)),
    "an endless array": lambda bus: bus.empty(2**70),
    "an array of nothing known": lambda bus: bus.empty(3, "flaot32"),
    "a dict in place of a dtype": lambda bus: bus.empty(3, [("a",)]),
}
IN_GROUP: dict[str, Callable[[clients.Group], object]] = {
    "no priority": lambda group: group.all_reduce(np.ones(2), async_op=True, priority=None),
    "an empty priority": lambda group: group.all_reduce(np.ones(2), async_op=True, priority=""),
    "an endless quorum": lambda group: group.all_reduce(np.ones(2), quorum=2**70),
    "half a character": lambda group: group.all_reduce(np.ones(2), quorum=1, name="\ud800"),
    "an op in a list": lambda group: [group.all_reduce(np.ones(2), op) for op in ("sum", ["sum"])],
    "a state with an endless number": lambda group: group.sync_state({"a": 2**70}),
    "an endless step": lambda group: group.sync_state({"a": np.ones(2)}, 2**70),
    "a generation before the first": lambda group: group.finish(generation=-1),
    "a generation to come": lambda group: group.finish(generation=2),
    "a fraction of a generation": lambda group: group.finish(generation=0.5),
    "shared arrays below 0": lambda group: group.empty(-1),
    "shared arrays of nothing known": lambda group: group.empty(3, "flaot32"),
    "parameters in a list": lambda group: clients.LocalSGD(group, [np.ones(2)], every=1),
    "parameters that are none": lambda group: clients.DiLoCo(group, {"weight": None}, every=1),
    "a text for a rate": lambda group: clients.DiLoCo(group, {"weight": np.ones(2)}, every=1, learning_rate="0.1"),
    "a text for a share": lambda group: clients.SGD(0.1, momentum="0.9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_an_invalid_value_and_the_client_goes_on(bus: clients.Client, case: str) -> None:
    with pytest.raises(clients.InvalidValue):
        WRONG[case](bus)
    assert bus.publish("fine", 1, ack="accepted") == 1


@pytest.mark.parametrize("case", IN_GROUP)
def test_a_wrong_argument_in_a_group_leaves_it_as_it_was(bus: clients.Client, case: str) -> None:
    group = bus.group("g", world_size=1)
    with pytest.raises(clients.InvalidValue):
        IN_GROUP[case](group)
    assert group.all_reduce(np.ones(2), timeout_s=20.0).tolist() == [1.0, 1.0]


def test_a_parameter_of_torch_is_told_how_it_becomes_one_of_numpy(bus: clients.Client) -> None:
    class Tensor:
        shape, dtype = (2,), "torch.float32"

    with pytest.raises(clients.InvalidValue, match=r"parameter 'weight' 'Tensor': .*numpy\(\)"):
        clients.LocalSGD(bus.group("g", world_size=1), {"weight": Tensor()}, every=1)


@pytest.mark.parametrize("value", ["x" * 10_000, b"x" * 10_000, ["x"] * 10_000], ids=["text", "bytes", "list"])
def test_a_payload_in_the_place_of_an_option_does_not_fill_the_error(bus: clients.Client, value: object) -> None:
    with pytest.raises(clients.InvalidValue) as caught:
        bus.publish("a", 1, ack=value)
    assert caught.value.value is value
    assert len(str(caught.value)) < 400


def test_numbers_of_numpy_are_numbers(bus: clients.Client) -> None:
    bus.subscribe("a", queue_messages=np.int64(5))
    group = bus.group("g", world_size=np.int64(1), rank=np.int32(0))
    assert group.broadcast(np.ones(2), root=np.int64(0)).tolist() == [1.0, 1.0]
    assert group.all_reduce(np.ones(2)).tolist() == [1.0, 1.0]


def test_a_wrong_root_leaves_the_group_as_it_was(bus: clients.Client) -> None:
    group = bus.group("g", world_size=1)
    for root in ("a", 0.5, 7):
        with pytest.raises(clients.InvalidValue):
            group.broadcast(np.ones(2), root=root)
    assert group.all_reduce(np.ones(2), timeout_s=5.0).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "options",
    [
        {"name": 3},
        {"name": "x" * 200},
        {"connect_timeout_s": "1"},
        {"reconnect_timeout_s": math.nan},
        {"on_reconnect": 3},
        {"name": "\ud800"},
        {"token": b"tb_1_secret"},
        {"token": "\ud800"},
        {"tenant": 3},
        {"tls": 3},
    ],
    ids=str,
)
def test_wrong_arguments_of_connect_reach_no_broker(tcp_broker: ServingThread, options: dict[str, object]) -> None:
    with pytest.raises(clients.InvalidValue):
        clients.connect(tcp_broker.url, **options)


def test_the_longest_time_limit_can_be_waited_for(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url, connect_timeout_s=1e9, reconnect_timeout_s=1e9) as bus:
        assert bus.publish("a", 1, ack="accepted", timeout_s=1e9) == 1


def test_a_nan_never_hangs_a_wait(bus: clients.Client, connect: Connect) -> None:
    subscription = connect("reader").subscribe("a")
    with pytest.raises(clients.InvalidValue):
        subscription.next(math.nan)


@pytest.mark.parametrize("ack", ["replicated", "durable"])
def test_an_acknowledgement_that_nobody_can_keep_is_refused(bus: clients.Client, ack: str) -> None:
    with pytest.raises(clients.InvalidValue, match=f"ack '{ack}': is not offered yet: brokers keep messages in memory"):
        bus.publish("fine", 1, ack=ack)


def test_an_asynchronous_client_in_another_loop_says_so_and_still_works_in_its_own(tcp_broker: ServingThread) -> None:
    async def flush(bus: clients.aio.Client) -> None:
        await bus.publish("a", 1)
        await bus.flush(timeout_s=20.0)

    with asyncio.Runner() as own:
        bus = own.run(clients.aio.connect(tcp_broker.url))
        with pytest.raises(clients.InvalidValue, match="another one than the client was made in"):
            asyncio.run(flush(bus))
        own.run(flush(bus))
        own.run(bus.close())


def test_a_folder_of_certificates_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(clients.ConnectError, match="trainer-7.* is no folder"):
        clients.connect("tls://127.0.0.1:1", tls=tmp_path / "trainer-7", connect_timeout_s=5.0)


def test_an_asynchronous_client_whose_loop_is_closed_says_so_rather_than_to_wait_for_it(
    tcp_broker: ServingThread,
) -> None:
    bus = asyncio.run(clients.aio.connect(tcp_broker.url))

    async def publish_many() -> None:
        # Some leave at once; the first that has to wait for others would wait for ever.
        for number in range(100_000):
            await bus.publish("a", number)

    with pytest.raises(clients.InvalidValue, match="in which the client was made is closed.*connect in this one"):
        asyncio.run(publish_many())
    asyncio.run(bus.close())


def test_without_a_loop_there_is_no_asynchronous_client_and_nothing_is_left_of_it() -> None:
    # What its end could not do would be a warning, and warnings are errors here.
    with pytest.raises(RuntimeError, match="no running event loop"):
        clients.aio.connect("tcp://127.0.0.1:9").send(None)
