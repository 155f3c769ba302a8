"""Ends: of subscriptions under waiting threads, of handlers, of embedded brokers, of forked and finished processes."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
import warnings
from queue import SimpleQueue

import numpy as np
import pytest

import clients
from broker.collectives import ring
from clients import aio
from clients.connection import lifetimes
from tests.clients.conftest import Interrupted
from tests.clients.ranks import all_together, embedded_url
from tests.clients.serving import ServingThread
from tests.daemon import Daemon, Process
from tests.descriptors import nothing_stays_opened, opened

LINKS = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine of links is not compiled")

PATIENCE_S = 60.0


def test_closing_a_subscription_ends_another_threads_wait(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url) as bus:
        subscription = bus.subscribe("quiet")
        outcome: list[object] = []

        def wait() -> None:
            try:
                outcome.append(subscription.next(PATIENCE_S))
            except clients.BrokerError as error:
                outcome.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        subscription.close()
        thread.join(PATIENCE_S / 2)
        assert isinstance(outcome[0], clients.ConnectionClosed)


def test_two_threads_share_a_latest_subscription(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url) as bus, clients.connect(tcp_broker.url) as publisher:
        subscription = bus.subscribe("weights", overflow="latest")
        received: list[object] = []
        threads = [
            threading.Thread(target=lambda: received.append(subscription.next(PATIENCE_S).value)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        number = 0
        while any(thread.is_alive() for thread in threads):
            publisher.publish("weights", number, ack="accepted")
            number += 1
        assert len(received) == 2


def test_handlers_of_closed_subscriptions_are_forgotten(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url) as bus:
        for number in range(20):
            bus.subscribe(f"t/{number}", handler=lambda message: None).close()
        done = threading.Event()
        bus.subscribe("last", handler=lambda message: done.set())
        bus.publish("last", 1)
        assert done.wait(PATIENCE_S)
        assert len(bus._handlers._handlers) == 1


def test_a_handler_that_exits_stops_no_other(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url) as bus:
        bus.respond("exits", lambda message: sys.exit(3))
        bus.respond("works", lambda message: message.value)
        with pytest.raises(clients.RequestFailed, match="SystemExit: 3"):
            bus.request("exits", timeout_s=PATIENCE_S)
        assert bus.request("works", 7, timeout_s=PATIENCE_S).value == 7


def test_a_broker_in_the_process_can_be_left_and_entered_again_at_any_moment() -> None:
    for number in range(100):
        with clients.connect("inproc://churn") as bus:
            assert bus.publish("t", number, ack="accepted") >= 1


def test_a_cancelled_subscribe_leaves_no_subscription(tcp_broker: ServingThread) -> None:
    async def scenario() -> None:
        async with await aio.connect(tcp_broker.url) as bus:
            task = asyncio.ensure_future(bus.subscribe("t"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await bus.flush()
            for number in range(10_000):
                await bus.publish("t", number, timeout_s=PATIENCE_S)

    asyncio.run(scenario())
    sessions = tcp_broker.call(lambda: [list(each.subscriptions) for each in tcp_broker.server.state.sessions.values()])
    assert all(subscriptions == [0] for subscriptions in sessions)


def test_a_hundred_large_messages_at_once_all_arrive(tcp_broker: ServingThread) -> None:
    async def scenario() -> list[int]:
        async with await aio.connect(tcp_broker.url) as bus, await aio.connect(tcp_broker.url) as reader:
            subscription = await reader.subscribe("large/+")
            sending = asyncio.gather(*(bus.publish(f"large/{n}", np.full(40_000, n)) for n in range(100)))
            received = [int((await subscription.next(PATIENCE_S)).value[-1]) for _ in range(100)]
            await sending
            return sorted(received)

    assert asyncio.run(scenario()) == list(range(100))


def test_a_cancelled_connect_leaks_nothing(tcp_broker: ServingThread) -> None:
    async def scenario() -> None:
        for _ in range(20):
            task = asyncio.ensure_future(aio.connect(tcp_broker.url))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.get_running_loop().shutdown_default_executor()

    # From the first stranger on, the server keeps a descriptor of its own.
    clients.connect(tcp_broker.url).close()
    tcp_broker.wait_until_idle()
    before = len(opened())
    asyncio.run(scenario())
    # The server accepts in order: when it has served this client, it has met all the others.
    clients.connect(tcp_broker.url).close()
    tcp_broker.wait_until_idle()
    assert len(opened()) <= before


def test_a_forked_child_leaves_its_parents_client_alone_and_has_none(tcp_broker: ServingThread) -> None:
    with Process(tcp_broker.url, module="tests.clients.forking") as process:
        assert process.read_line() == "child: this client belongs to the parent process; connect again after fork"
        assert process.read_line() == "child: published by its own"
        assert process.read_line() == "parent: [2.0, 2.0]"
        assert process.wait() == 0


def test_a_program_that_ends_without_close_loses_nothing(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url) as bus:
        subscription = bus.subscribe("numbers", queue_messages=10_000)
        with Process(tcp_broker.url, module="tests.clients.leaving") as process:
            assert process.wait() == 0
        assert [subscription.next(PATIENCE_S).value for _ in range(2000)] == list(range(2000))


def sessions_of(serving: ServingThread) -> int:
    return int(serving.call(lambda: len(serving.server.state.sessions)))


def test_a_client_that_nothing_refers_to_is_closed_and_that_is_a_warning(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url) as reader:
        subscription = reader.subscribe("last", queue_messages=10_000)
        before = len(opened()), threading.active_count()
        for number in range(30):
            bus = clients.connect(tcp_broker.url, name="forgotten")
            bus.publish("last", number)
            with pytest.warns(ResourceWarning, match="unclosed client 'forgotten': close it, or use `with`"):
                del bus
        # In order: what was published still leaves.
        assert sorted(subscription.next(PATIENCE_S).value for _ in range(30)) == list(range(30))
        for thread in threading.enumerate():
            if thread.name == "tensorbus-keeper-forgotten":
                thread.join(PATIENCE_S)
        while sessions_of(tcp_broker) > 1:
            pass
        assert len(opened()) <= before[0]
        assert threading.active_count() <= before[1]


def test_a_client_stays_while_anything_of_it_is_there(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url) as bus:
        subscription = clients.connect(tcp_broker.url).subscribe("a")
        group = clients.connect(tcp_broker.url).group("dp", world_size=1)
        replies = clients.connect(tcp_broker.url).request_many("asked", timeout_s=PATIENCE_S)
        clients.connect(tcp_broker.url, name="answers").respond("asked", lambda request: request.topic)
        work = clients.connect(tcp_broker.url).group("alone", world_size=1).all_reduce(np.ones(3), async_op=True)
        gc.collect()
        assert work.wait(PATIENCE_S).tolist() == [1.0] * 3
        assert group.all_reduce(np.ones(2)).tolist() == [1.0] * 2
        assert [reply.value for reply in replies] == ["asked"]
        bus.publish("a", 1)
        assert subscription.next(PATIENCE_S).value == 1
        with pytest.warns(ResourceWarning, match="unclosed client") as warned:
            del subscription, group, replies, work
        assert len(warned) == 4
        # A responder may be all that a client is for.
        assert bus.request("asked", timeout_s=PATIENCE_S).value == "asked"
        (answers,) = [driver for driver in lifetimes.open_drivers if driver.core.name == "answers"]
        answers.close("the test is over", PATIENCE_S)


def test_an_asynchronous_client_that_nobody_has_closed_leaves_nothing_open(tcp_broker: ServingThread) -> None:
    async def forget() -> None:
        bus = await aio.connect(tcp_broker.url, name="forgotten")
        await bus.publish("a", 1, ack="accepted")

    clients.connect(tcp_broker.url).close()
    tcp_broker.wait_until_idle()
    before = len(opened())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        asyncio.run(forget())
        gc.collect()
    # Python has its own word on the socket.
    assert [each.category for each in warned if "unclosed client 'forgotten'" in str(each.message)] == [ResourceWarning]
    tcp_broker.wait_until_idle()
    assert len(opened()) <= before


def test_a_client_that_has_given_up_leaves_nothing_when_it_is_forgotten(tcp_broker: ServingThread) -> None:
    bus = clients.connect(tcp_broker.url, name="lost", reconnect_timeout_s=0)
    before = len(opened())
    tcp_broker.cut_off("lost")
    with pytest.raises(clients.ConnectionClosed):
        bus.flush(PATIENCE_S)
    driver = bus._driver
    for thread in threading.enumerate():
        if thread.name == "tensorbus-keeper-lost":
            thread.join(PATIENCE_S)
    assert driver not in lifetimes.open_drivers
    assert len(opened()) < before


def test_a_program_with_many_clients_of_a_broker_that_has_stopped_ends_soon() -> None:
    with Daemon() as daemon, Process(daemon.url, module="tests.clients.crowd") as process:
        assert process.read_line() == "connected"
        daemon.process.signal(signal.SIGSTOP)
        process.signal(signal.SIGINT)
        # Each of its 100 clients would wait for a second.
        assert process.wait() == 0
        daemon.process.signal(signal.SIGCONT)


def test_what_is_published_last_arrives_though_the_broker_is_just_writing_to_who_closes() -> None:
    """A rank that leaves has the broker write to the other one, which may have closed by then."""
    url, rounds = embedded_url(), 40

    def rank(number: int, turn: int) -> None:
        with clients.connect(url) as bus:
            group = bus.group(f"group-{turn}", world_size=2, rank=number, timeout_s=PATIENCE_S)
            group.all_reduce(np.ones(5))
            bus.publish("last", [turn, number])

    with clients.connect(url) as bus, bus.subscribe("last") as subscription:
        for turn in range(rounds):
            all_together(lambda turn=turn: rank(0, turn), lambda turn=turn: rank(1, turn))
            assert sorted(subscription.next(PATIENCE_S).value for _ in range(2)) == [[turn, 0], [turn, 1]]


def refuse_threads(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """As on a machine that can have no more of them, for those of one name."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(prefix):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_handler_for_which_there_can_be_no_thread_leaves_no_subscription(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = threading.Event()
    with clients.connect(tcp_broker.url) as bus:
        with monkeypatch.context() as patch:
            refuse_threads(patch, "tensorbus-handlers")
            with pytest.raises(clients.LimitExceeded, match="can't start new thread: raise RLIMIT_NPROC"):
                bus.subscribe("losses", handler=lambda message: None)
            with pytest.raises(clients.LimitExceeded, match="can't start new thread"):
                bus.respond("add", lambda request: request.value + 1)
        assert bus.pressure("losses").subscriptions == ()
        with pytest.raises(clients.NoResponders):
            bus.request("add", 1)
        bus.subscribe("losses", handler=lambda message: taken.set())
        bus.publish("losses", 0.5)
        assert taken.wait(PATIENCE_S)


def test_a_handler_that_waits_where_there_can_be_no_other_thread_fails_and_later_ones_do_not(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: SimpleQueue[object] = SimpleQueue()
    with clients.connect(tcp_broker.url) as bus:

        def ask(message: clients.Message) -> None:
            try:
                outcomes.put(bus.request("add", message.value, timeout_s=PATIENCE_S).value)
            except clients.LimitExceeded as error:
                outcomes.put(error.limit)

        bus.respond("add", lambda request: request.value + 1)
        bus.subscribe("ask", handler=ask)
        with monkeypatch.context() as patch:
            refuse_threads(patch, "tensorbus-handlers")
            bus.publish("ask", 1)
            assert outcomes.get(timeout=PATIENCE_S) == "threads"
        bus.publish("ask", 1)
        assert outcomes.get(timeout=PATIENCE_S) == 2


def test_a_client_for_which_there_can_be_no_thread_is_refused_and_leaves_nothing(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clients.connect(tcp_broker.url) as bus:
        before = opened()
        refuse_threads(monkeypatch, "tensorbus-keeper")
        with pytest.raises(clients.ConnectError, match="can't start new thread: raise RLIMIT_NPROC"):
            clients.connect(tcp_broker.url)
        tcp_broker.wait_until_alone(bus, 1)
        assert nothing_stays_opened(before)


def test_a_client_without_a_thread_for_its_door_joins_without_one(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clients.connect(tcp_broker.url) as bus:
        before = opened()
        refuse_threads(monkeypatch, "tensorbus-door")
        with bus.group("dp", world_size=1) as group:
            assert group.all_reduce(np.ones(1))[0] == 1.0
        assert nothing_stays_opened(before)


@pytest.mark.usefixtures("interrupting")
@pytest.mark.parametrize("name", [pytest.param("tensorbus-door", marks=LINKS), "tensorbus-keeper"])
def test_a_signal_while_a_thread_starts_leaves_none_behind(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start, started = threading.Thread.start, []

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith(name):
            started.append(thread)
            raise Interrupted

    with clients.connect(tcp_broker.url) as bus, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_and_be_interrupted)
        with pytest.raises(Interrupted), clients.connect(tcp_broker.url) as other:
            other.group("dp", world_size=1)
        tcp_broker.wait_until_alone(bus, 1)
        for thread in started:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@pytest.mark.usefixtures("interrupting")
def test_a_signal_before_a_thread_starts_leaves_a_client_that_works_and_nothing_of_one_that_was_not_made(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, taken = threading.Thread.start, threading.Event()

    def be_interrupted(thread: threading.Thread) -> None:
        if thread.name.startswith("tensorbus-"):
            raise Interrupted
        start(thread)

    with clients.connect(tcp_broker.url) as bus:
        before = opened()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", be_interrupted)
            with pytest.raises(Interrupted):
                bus.subscribe("losses", handler=lambda message: None)
            with pytest.raises(Interrupted):
                clients.connect(tcp_broker.url)
        tcp_broker.wait_until_alone(bus, 1)
        assert nothing_stays_opened(before)
        bus.subscribe("losses", handler=lambda message: taken.set())
        bus.publish("losses", 0.5)
        assert taken.wait(PATIENCE_S)
