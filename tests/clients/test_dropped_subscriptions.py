"""What nobody can read any more is closed by itself, before it holds publishers back for ever."""

from __future__ import annotations

import ctypes
import gc
import operator
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import pytest

import clients
from broker.protocol.bodies import Subscribe
from clients.connection import link, operations
from clients.publishing.filling import UNBROKEN
from tests.clients.conftest import Connect, Interrupted
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0
MORE_THAN_A_WINDOW = [bytes(10_000)] * 300
"""3 MB, where a publisher waits after 2 MiB while a subscription is there that is full."""


def publish_more_than_a_window(bus: clients.Client, topic: str) -> None:
    """Returns when no subscription to the topic holds it back."""
    for value in MORE_THAN_A_WINDOW:
        bus.publish(topic, value, timeout_s=PATIENCE_S)
    bus.flush(PATIENCE_S)


def test_a_name_that_is_given_to_another_subscription_leaves_none_behind(connect: Connect) -> None:
    bus, reader = connect("publisher"), connect("reader")
    subscription = reader.subscribe("losses", queue_messages=10)
    # As a cell of a notebook that runs again.
    subscription = reader.subscribe("losses", overflow="drop_oldest")
    gc.collect()
    publish_more_than_a_window(bus, "losses")
    assert [each.policy for each in bus.pressure("losses").subscriptions] == ["drop_oldest"]
    assert subscription.next(PATIENCE_S).topic == "losses"


@pytest.mark.usefixtures("interrupting")
def test_a_signal_within_a_with_closes_the_subscription(tcp_broker: ServingThread) -> None:
    main = threading.main_thread().ident or 0
    with clients.connect(tcp_broker.url, name="reader") as bus, clients.connect(tcp_broker.url) as other:
        other.subscribe("interrupt", handler=lambda message: signal.pthread_kill(main, signal.SIGUSR1))
        subscription = bus.subscribe("losses", queue_messages=10)
        with pytest.raises(Interrupted):
            _read_and_be_interrupted(subscription, other)
        with pytest.raises(clients.ConnectionClosed):
            subscription.next(PATIENCE_S)
        publish_more_than_a_window(other, "losses")


def _read_and_be_interrupted(subscription: clients.Subscription, other: clients.Client) -> None:
    with subscription:
        other.publish("interrupt", True)
        subscription.next(PATIENCE_S)


@pytest.mark.usefixtures("interrupting")
def test_a_signal_between_subscribe_and_with_leaves_none_open(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url, name="reader") as bus:
        with pytest.raises(Interrupted):
            _subscribe_and_be_interrupted(bus)
        publish_more_than_a_window(bus, "losses")


def _subscribe_and_be_interrupted(bus: clients.Client) -> None:
    subscription = bus.subscribe("losses", queue_messages=10)
    signal.raise_signal(signal.SIGUSR1)
    with subscription:
        raise AssertionError("the signal came too late")


@pytest.mark.usefixtures("interrupting")
def test_a_signal_while_the_subscription_is_made_leaves_none_open(tcp_broker: ServingThread) -> None:
    if not UNBROKEN:
        pytest.skip("nothing is compiled, so a signal's exception may come between any two steps")
    trip = partial(ctypes.pythonapi.PyErr_SetInterruptEx, int(signal.SIGUSR1))
    with clients.connect(tcp_broker.url, name="reader") as bus:
        mine = bus._driver
        wishes = Subscribe("losses", "block", queue_messages=10)
        state = mine.run(operations.subscribe(mine, wishes, PATIENCE_S))
        with pytest.raises(Interrupted):
            # Without a step of Python's own between the signal and what is compiled.
            list(map(operator.call, (trip, partial(clients.Subscription, mine, state, read=True))))
        publish_more_than_a_window(bus, "losses")


@pytest.mark.usefixtures("interrupting")
def test_a_signal_while_the_subscription_goes_is_heard_and_leaves_none_open(tcp_broker: ServingThread) -> None:
    trip = partial(ctypes.pythonapi.PyErr_SetInterruptEx, int(signal.SIGUSR1))
    with clients.connect(tcp_broker.url, name="reader") as bus:
        subscriptions = [bus.subscribe("losses", queue_messages=10)]
        with pytest.raises(Interrupted):
            list(map(operator.call, (trip, subscriptions.clear)))
        publish_more_than_a_window(bus, "losses")


def test_a_thread_that_waits_and_a_generator_keep_their_subscriptions_as_long_as_they_read(connect: Connect) -> None:
    bus, reader = connect("publisher"), connect("reader")
    values = (message.value for message in reader.subscribe("generated", queue_messages=10))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.subscribe("awaited").next, PATIENCE_S)
        reader.subscribe("read/by/nobody", queue_messages=10)
        gc.collect()
        # When that one has ended, they would have, too.
        publish_more_than_a_window(bus, "read/by/nobody")
        bus.publish("awaited", 1)
        assert waiting.result(PATIENCE_S).value == 1
    bus.publish("generated", 2)
    assert next(values) == 2
    del values
    gc.collect()
    publish_more_than_a_window(bus, "generated")


def test_handlers_and_responders_go_on_without_their_subscription(connect: Connect) -> None:
    bus, reader = connect("publisher"), connect("reader")
    taken: SimpleQueue[object] = SimpleQueue()
    reader.subscribe("losses", handler=lambda message: taken.put(message.value))
    reader.respond("add", lambda request: request.value + 1)
    reader.subscribe("read/by/nobody", queue_messages=10)
    gc.collect()
    # When that one has ended, they would have, too.
    publish_more_than_a_window(bus, "read/by/nobody")
    bus.publish("losses", 0.5)
    assert taken.get(timeout=PATIENCE_S) == 0.5
    assert bus.request("add", 1, timeout_s=PATIENCE_S).value == 2


def test_a_job_keeps_its_subscription_until_it_is_settled(connect: Connect) -> None:
    bus, reader = connect("publisher"), connect("reader")
    bus.declare("jobs", acknowledge=True, lease_s=3600.0)
    bus.publish("jobs", 1, ack="accepted")
    job = reader.subscribe("jobs", queue_group="workers", queue_messages=1).next(PATIENCE_S)
    reader.subscribe("read/by/nobody", queue_messages=10)
    gc.collect()
    publish_more_than_a_window(bus, "read/by/nobody")
    other = bus.subscribe("jobs", queue_group="workers")
    job.ack()
    bus.publish("jobs", 2, ack="accepted")
    # The first one, if it had come back, would come before it.
    assert other.next(PATIENCE_S).value == 2


def test_a_job_that_is_dropped_with_its_subscription_goes_to_another_member(connect: Connect) -> None:
    bus, reader = connect("publisher"), connect("reader")
    bus.declare("jobs", acknowledge=True, lease_s=3600.0)
    bus.publish("jobs", 1, ack="accepted")
    _take_and_drop(reader)
    gc.collect()
    assert bus.subscribe("jobs", queue_group="workers").next(PATIENCE_S).value == 1


def _take_and_drop(reader: clients.Client) -> None:
    reader.subscribe("jobs", queue_group="workers").next(PATIENCE_S)


def test_one_that_is_dropped_while_there_is_no_connection_ends_there_and_is_not_made_again(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: SimpleQueue[clients.Reconnected] = SimpleQueue()
    reachable, closed = threading.Event(), threading.Event()
    dial = link.dial

    def dial_once_reachable(*arguments: object) -> object:
        if not reachable.is_set():
            raise clients.ConnectError(tcp_broker.url, "it cannot be reached yet")
        return dial(*arguments)

    with clients.connect(tcp_broker.url, name="reader", on_reconnect=told.put) as reader:
        monkeypatch.setattr(link, "dial", dial_once_reachable)
        kept, dropped = reader.subscribe("kept"), reader.subscribe("losses", queue_messages=10)
        dropped._state.on_message = closed.set
        tcp_broker.cut_off("reader")
        del dropped
        gc.collect()
        assert closed.wait(PATIENCE_S)
        reachable.set()
        assert told.get(timeout=PATIENCE_S).subscriptions == ("kept",)
        assert kept.filter == "kept"


def test_a_client_that_is_dropped_while_there_is_no_connection_does_not_look_for_one(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = threading.Event()

    def dial_in_vain(*arguments: object) -> object:
        cut.set()
        raise clients.ConnectError(tcp_broker.url, "it cannot be reached any more")

    reader = clients.connect(tcp_broker.url, name="reader", reconnect_timeout_s=1e6)
    monkeypatch.setattr(link, "dial", dial_in_vain)
    tcp_broker.cut_off("reader")
    assert cut.wait(PATIENCE_S)
    (keeper,) = [each for each in threading.enumerate() if each.name == "tensorbus-keeper-reader"]
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        del reader
        gc.collect()
    keeper.join(PATIENCE_S)
    assert not keeper.is_alive()
