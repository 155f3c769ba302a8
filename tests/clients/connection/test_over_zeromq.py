"""Both kinds of client over ZeroMQ: what goes through every layer, and what is made of many clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq.auth

import clients
from broker.limits import MIB
from tests.clients.asynchronous import AsyncLoop, for_each
from tests.clients.conftest import Connect
from tests.clients.ranks import all_together
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0
MANY = 200


@pytest.fixture(params=["zmq+tcp", "zmq+ipc"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServingThread]:
    address = "zmq+tcp://127.0.0.1:0" if request.param == "zmq+tcp" else f"zmq+ipc://{tmp_path}/zmq.sock"
    with ServingThread(address) as serving:
        yield serving
        serving.wait_until_idle()


def test_messages_arrive_once_and_in_order(connect: Connect) -> None:
    bus, other = connect("first"), connect("second")
    subscription = other.subscribe("numbers/+", queue_messages=16)
    published = [{"topic": "numbers/all", "value": number} for number in range(5000)]
    sending = threading.Thread(target=for_each, args=(bus.publish, published))
    sending.start()
    messages = for_each(subscription.next, [{"timeout_s": PATIENCE_S}] * 5000)
    assert [message.value for message in messages] == list(range(5000))
    sending.join(PATIENCE_S)


def test_a_large_tensor_arrives_whole_and_a_control_message_is_not_kept_behind_it(connect: Connect) -> None:
    bus, other = connect("first"), connect("second")
    tensors, control = other.subscribe("tensors"), other.subscribe("control/#")
    array = np.arange(3 * MIB, dtype=np.uint32)
    for _ in range(2):
        bus.publish("tensors", array)
        bus.publish("control/stop", "now", lane="control")
        assert np.array_equal(tensors.next(PATIENCE_S).value, array)
        assert control.next(PATIENCE_S).value == "now"


def test_the_broker_passes_chunks_on_in_the_memory_in_which_they_have_come(
    connect: Connect, broker: ServingThread
) -> None:
    bus, others = connect("first"), [connect("second"), connect("third")]
    tensors = [other.subscribe("tensors") for other in others]
    for number in range(20):
        bus.publish("tensors", np.full(MIB, number, np.uint16))
        for each in tensors:
            value = each.next(PATIENCE_S).value
            assert value.min() == value.max() == number
    assert broker.server.state.pool.held_bytes == 0


def test_requests_are_answered(connect: Connect) -> None:
    bus, other = connect("first"), connect("second")
    other.respond("double", lambda message: message.value * 2)
    assert [bus.request("double", number, timeout_s=PATIENCE_S).value for number in range(20)] == list(range(0, 40, 2))


def test_a_subscriber_that_does_not_read_holds_its_publisher_back_and_nobody_else(connect: Connect) -> None:
    bus, slow, swift = connect("first"), connect("slow"), connect("swift")
    held = slow.subscribe("held", queue_messages=8)
    quick = swift.subscribe("free")

    def publish_until_held() -> None:
        for _ in range(100_000):
            bus.publish("held", bytes(32 * 1024), timeout_s=0.5)

    with pytest.raises(clients.TimeoutError):
        publish_until_held()
    swift.publish("free", "through", ack="accepted")
    assert quick.next(PATIENCE_S).value == "through"
    assert held.next(PATIENCE_S).value == bytes(32 * 1024)


def test_ranks_reduce(connect: Connect) -> None:
    buses = [connect(f"rank-{rank}") for rank in range(3)]

    def reduce(rank: int) -> np.ndarray:
        group = buses[rank].group("dp", world_size=3, rank=rank, timeout_s=PATIENCE_S)
        array = np.full(300_000, float(rank + 1), np.float32)
        group.all_reduce(array, op="sum", timeout_s=PATIENCE_S)
        return array

    for result in all_together(*(lambda rank=rank: reduce(rank) for rank in range(3))):
        assert (result == 6.0).all()


def test_a_lost_link_is_replaced_and_the_subscription_goes_on(connect: Connect, broker: ServingThread) -> None:
    bus, other = connect("first"), connect("second")
    subscription = other.subscribe("news")
    bus.publish("news", 1, ack="accepted")
    assert subscription.next(PATIENCE_S).value == 1
    broker.cut_off("second")
    bus.publish("news", 2, ack="accepted")
    assert subscription.next(PATIENCE_S).value == 2


def test_two_hundred_clients_hear_a_message_each_and_leave_nothing(tmp_path: Path) -> None:
    with ServingThread(f"zmq+ipc://{tmp_path}/zmq.sock") as serving, clients.connect(serving.url) as bus:
        loop = AsyncLoop()
        crowd = [loop.connect(serving.url, name=f"client-{number}") for number in range(MANY)]
        subscriptions = [client.subscribe("all") for client in crowd]
        for number in range(5):
            bus.publish("all", number, ack="accepted")
        for subscription in subscriptions:
            assert [subscription.next(PATIENCE_S).value for _ in range(5)] == list(range(5))
        for client in crowd:
            client.close()
        loop.close()
        bus.flush(PATIENCE_S)
        assert serving.call(lambda: len(serving.server._links)) == 1


def test_keys_are_named_in_the_address(tmp_path: Path) -> None:
    zmq.auth.create_certificates(tmp_path, "broker")
    with ServingThread(f"zmq+tcp://127.0.0.1:0?curve={tmp_path}/broker.key_secret") as serving:
        url = serving.url.replace(".key_secret", ".key")
        with clients.connect(url) as bus, bus.subscribe("secret") as subscription:
            bus.publish("secret", "kept")
            assert subscription.next(PATIENCE_S).value == "kept"
        with pytest.raises(clients.ConnectError, match="CURVE"):
            clients.connect(url.partition("?")[0], connect_timeout_s=PATIENCE_S)


def test_of_several_addresses_the_first_that_answers_is_taken(tmp_path: Path) -> None:
    with ServingThread("zmq+tcp://127.0.0.1:0", "tcp://127.0.0.1:0") as serving:
        second = str(serving.server.listeners[1].address)
        nobody = f"zmq+ipc://{tmp_path}/nobody.sock"
        for url in (f"{nobody},{serving.url},{second}", f"{nobody}, {second}"):
            with clients.connect(url) as bus:
                bus.flush(PATIENCE_S)
        with pytest.raises(clients.ConnectError, match=r"no such file.*not ZeroMQ|no such file.*nobody listens"):
            clients.connect(f"{nobody},zmq+tcp://127.0.0.1:1", connect_timeout_s=PATIENCE_S)
