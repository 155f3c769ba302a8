"""Responders and handlers of the synchronous client that use the client themselves."""

from __future__ import annotations

import itertools
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

import clients
from broker.limits import HANDLERS_WAITING_MAX
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0


@pytest.fixture
def bus(tcp_broker: ServingThread) -> Iterator[clients.Client]:
    with clients.connect(tcp_broker.url, name="first") as client:
        yield client


@pytest.fixture
def other(tcp_broker: ServingThread) -> Iterator[clients.Client]:
    with clients.connect(tcp_broker.url, name="second") as client:
        yield client


def handler_threads(client: clients.Client) -> list[threading.Thread]:
    name = f"tensorbus-handlers-{client.name}"
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_a_responder_may_ask_another_one_of_its_own_client(bus: clients.Client, other: clients.Client) -> None:
    bus.respond("inner", lambda message: message.value + 1)
    bus.respond("outer", lambda message: bus.request("inner", message.value, timeout_s=PATIENCE_S).value * 10)
    for number in range(20):
        assert other.request("outer", number, timeout_s=PATIENCE_S).value == (number + 1) * 10
    # One, and perhaps one that is about to end.
    assert len(handler_threads(bus)) <= 2


def test_a_responder_may_ask_itself(bus: clients.Client) -> None:
    def factorial(message: clients.Message) -> int:
        number = message.value
        return 1 if number < 2 else number * bus.request("factorial", number - 1, timeout_s=PATIENCE_S).value

    bus.respond("factorial", factorial)
    assert bus.request("factorial", 20, timeout_s=PATIENCE_S).value == 2432902008176640000


def test_a_responder_that_asks_itself_without_end_is_told_so_at_once(bus: clients.Client) -> None:
    bus.respond("endless", lambda message: bus.request("endless", timeout_s=PATIENCE_S).value)
    with pytest.raises(clients.RequestFailed, match=f"handlers_waiting_max: {HANDLERS_WAITING_MAX + 1} is over"):
        bus.request("endless", timeout_s=PATIENCE_S)
    bus.respond("fine", lambda message: "fine")
    assert bus.request("fine", timeout_s=PATIENCE_S).value == "fine"


def test_a_responder_may_gather_from_its_own_client(bus: clients.Client, other: clients.Client) -> None:
    for number in range(3):
        bus.respond("shard", lambda message, number=number: (number for _ in range(2)))
    bus.respond("all", lambda message: [reply.value for reply in bus.request_many("shard", timeout_s=None)])
    assert sorted(other.request("all", timeout_s=PATIENCE_S).value) == [0, 0, 1, 1, 2, 2]


def test_one_handler_runs_at_a_time_although_some_wait(bus: clients.Client, other: clients.Client) -> None:
    running: list[str] = []
    overlaps: list[list[str]] = []

    def work(name: str) -> None:
        running.append(name)
        if len(running) > 1:
            overlaps.append(list(running))
        running.remove(name)

    def outer(message: clients.Message) -> str:
        for _ in range(20):
            work("outer")
            bus.request("inner", timeout_s=PATIENCE_S)
            work("outer")
        return "done"

    def inner(message: clients.Message) -> None:
        work("inner")

    bus.respond("outer", outer)
    bus.respond("inner", inner)
    bus.subscribe("noise", handler=lambda message: work("noise"))
    asked = [threading.Thread(target=lambda: other.request("outer", timeout_s=PATIENCE_S)) for _ in range(3)]
    for thread in asked:
        thread.start()
    for number in range(300):
        other.publish("noise", number)
    for thread in asked:
        thread.join(PATIENCE_S)
    assert overlaps == []


def test_messages_of_a_handler_that_waits_keep_their_order(bus: clients.Client, other: clients.Client) -> None:
    seen: list[object] = []
    done = threading.Event()

    def handle(message: clients.Message) -> None:
        seen.append(bus.request("echo", message.value, timeout_s=PATIENCE_S).value)
        if message.value == 99:
            done.set()

    bus.respond("echo", lambda message: message.value)
    bus.subscribe("numbers", handler=handle)
    for number in range(100):
        other.publish("numbers", number)
    assert done.wait(PATIENCE_S)
    assert seen == list(range(100))


def test_a_client_can_be_closed_while_a_responder_waits(bus: clients.Client, other: clients.Client) -> None:
    asked = threading.Event()

    def never(message: clients.Message) -> object:
        asked.set()
        return clients.DEFERRED

    failed: queue.Queue[clients.BrokerError] = queue.Queue()

    def outer(message: clients.Message) -> None:
        try:
            bus.request("never", timeout_s=1.0)
        except clients.BrokerError as error:
            failed.put(error)

    bus.respond("never", never)
    bus.subscribe("go", handler=outer)
    other.publish("go", 1)
    assert asked.wait(PATIENCE_S)
    bus.close()
    assert isinstance(failed.get(timeout=PATIENCE_S), (clients.TimeoutError, clients.ConnectionClosed))
    assert handler_threads(bus) == []


def test_an_interrupt_from_the_keyboard_reaches_the_responder_and_sends_nothing_twice(
    tcp_broker: ServingThread,
) -> None:
    program = [sys.executable, "-m", "tests.clients.interrupted", tcp_broker.url]
    for _ in range(5):
        ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stdout) == (0, "interrupted and cancelled\n"), ended.stderr


def test_a_stream_goes_on_in_turn_with_other_requests(bus: clients.Client, other: clients.Client) -> None:
    def count(message: clients.Message) -> Iterator[int]:
        yield from range(100_000)

    bus.respond("count", count)
    bus.respond("echo", lambda message: message.value)
    first, second = other.request_many("count", timeout_s=None), other.request_many("count", timeout_s=None)
    for number in range(1000):
        assert next(first).value == next(second).value == number
        if number % 100 == 0:
            assert other.request("echo", number, timeout_s=PATIENCE_S).value == number
    first.close()
    second.close()


def test_closing_the_responders_client_closes_its_generators(bus: clients.Client, other: clients.Client) -> None:
    closed = threading.Event()

    def count(message: clients.Message) -> Iterator[int]:
        try:
            yield from range(100_000)
        finally:
            closed.set()

    other.respond("count", count)
    assert next(bus.request_many("count", timeout_s=None)).value == 0
    other.close()
    assert closed.is_set()


def test_a_generator_that_cannot_be_closed_harms_nobody(bus: clients.Client, other: clients.Client) -> None:
    def stubborn(message: clients.Message) -> Iterator[int]:
        while True:
            try:
                yield 1
            except GeneratorExit:
                yield 2

    other.respond("stubborn", stubborn)
    other.respond("echo", lambda message: message.value)
    with bus.request_many("stubborn", timeout_s=None) as replies:
        next(replies)
    assert bus.request("echo", 1, timeout_s=PATIENCE_S).value == 1


def test_functions_that_are_told_of_cancellations_run_one_after_the_other_and_may_fail(
    bus: clients.Client, other: clients.Client
) -> None:
    told: queue.Queue[int] = queue.Queue()
    asked: list[int] = []

    def keep(request: clients.Request) -> object:
        number = request.value

        def tell() -> None:
            told.put(number)
            raise ValueError(number)

        request.on_cancel(tell)
        asked.append(number)
        return clients.DEFERRED

    other.respond("slow", keep)
    numbers = itertools.count()
    # One that was given up before it came, as it may be on a busy machine, is not shown to the responder.
    while len(asked) < 3:
        with pytest.raises(clients.TimeoutError):
            bus.request("slow", next(numbers), timeout_s=0.5)
    assert sorted(told.get(timeout=PATIENCE_S) for _ in range(3)) == asked[:3]
