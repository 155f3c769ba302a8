"""Requests and replies on lines: they are what they are by the socket, and nothing of them passes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import clients
from broker.limits import LINE_AFTER_MESSAGES
from broker.protocol.line import AVAILABLE
from tests.clients.asynchronous import AsyncLoop
from tests.clients.lines.lining import PATIENCE_S, has_line, lines_of
from tests.clients.serving import ServingThread

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")


def begin(bus: clients.Client, topic: str = "a") -> None:
    """Asks until requests and replies have lines."""
    for number in range(2 * LINE_AFTER_MESSAGES):
        assert bus.request(topic, number, timeout_s=PATIENCE_S).value is not None
        bus.flush(PATIENCE_S)


@pytest.mark.parametrize("queue_group", [None, "workers"])
def test_requests_and_replies_do_not_pass_the_sockets(
    broker: ServingThread, bus: clients.Client, other: clients.Client, queue_group: str | None
) -> None:
    other.respond("a", lambda message: [message.value, message.topic, message.sender], queue_group=queue_group)
    begin(bus)
    assert has_line(bus)
    assert has_line(other, bus._core.inbox())
    assert lines_of(broker) == 2
    before = bus._core.session.sent_bytes, other._core.session.sent_bytes
    for number in range(100):
        reply = bus.request("a", number, timeout_s=PATIENCE_S)
        assert (reply.value, reply.sender) == ([number, "a", "publisher"], "reader")
    assert (bus._core.session.sent_bytes, other._core.session.sent_bytes) == before
    assert lines_of(broker) == 2
    broker.call(broker.server.state.drain_lines)
    assert not broker.call(lambda: broker.server.state.own.requests.busy)


def test_an_asynchronous_client_asks_and_responds_on_lines(broker: ServingThread) -> None:
    async def talk() -> tuple[list[object], bool, bool]:
        asker = await clients.aio.connect(broker.url, name="publisher")
        responder = await clients.aio.connect(broker.url, name="reader")
        async with asker, responder:

            async def answer(message: clients.Message) -> object:
                return message.value

            await responder.respond("a", answer)
            got = []
            for number in range(100):
                got.append((await asker.request("a", number, timeout_s=PATIENCE_S)).value)
                if number < 20:
                    await asker.flush(PATIENCE_S)
            topics = asker._core.outgoing.topics, responder._core.outgoing.topics
            return got, topics[0]["a"].line is not None, topics[1][asker._core.inbox()].line is not None

    loop = AsyncLoop()
    try:
        assert loop.run(talk()) == (list(range(100)), True, True)
    finally:
        loop.close()


def test_a_request_on_a_line_that_is_given_up_is_cancelled(bus: clients.Client, other: clients.Client) -> None:
    asked: list[clients.Message] = []
    cancelled = threading.Event()

    def answer(message: clients.Request) -> object:
        if message.value != "silent":
            return message.value
        asked.append(message)
        message.on_cancel(cancelled.set)
        return clients.DEFERRED

    other.respond("a", answer)
    begin(bus)
    # One that was given up before it came, as it may be on a busy machine, is not shown to the responder.
    while not asked:
        with pytest.raises(clients.TimeoutError):
            bus.request("a", "silent", timeout_s=1.0)
    assert cancelled.wait(PATIENCE_S)
    asked[0].reply("too late")
    assert bus.request("a", "next", timeout_s=PATIENCE_S).value == "next"
    assert has_line(bus)


def test_what_a_responder_raises_comes_on_its_line(bus: clients.Client, other: clients.Client) -> None:
    def answer(message: clients.Message) -> object:
        return 1 / int(message.value)

    other.respond("a", lambda message: 1 if message.value == 0 else answer(message))
    begin(bus)
    other.respond("b", answer)
    begin_b = [bus.request("b", number, timeout_s=PATIENCE_S).value for number in range(1, 20)]
    assert begin_b[0] == 1.0
    with pytest.raises(clients.RequestFailed, match="ZeroDivisionError"):
        bus.request("b", 0, timeout_s=PATIENCE_S)
    assert bus.request("b", 2, timeout_s=PATIENCE_S).value == 0.5


def test_replies_of_a_generator_come_in_order_whichever_way_they_take(
    bus: clients.Client, other: clients.Client
) -> None:
    def count(message: clients.Message) -> Iterator[int]:
        yield from range(int(message.value))

    other.respond("a", count)
    for _ in range(LINE_AFTER_MESSAGES + 4):
        assert [reply.value for reply in bus.request_many("a", 50, timeout_s=PATIENCE_S)] == list(range(50))


def test_a_responder_that_goes_is_told_of_and_another_takes_over(
    broker: ServingThread, bus: clients.Client, other: clients.Client
) -> None:
    responder = other.respond("a", lambda message: "first", queue_group="g")
    begin(bus)
    with clients.connect(broker.url, name="second") as second:
        second.respond("a", lambda message: "second", queue_group="g")
        assert lines_of(broker) <= 1
        responder.close()
        values = {bus.request("a", None, timeout_s=PATIENCE_S).value for _ in range(50)}
        assert values == {"second"}
    with pytest.raises((clients.NoResponders, clients.ResponderLost)):
        bus.request("a", None, timeout_s=PATIENCE_S)


def test_a_large_reply_and_a_large_request_go_by_the_socket_and_stay_in_order(
    bus: clients.Client, other: clients.Client
) -> None:
    other.respond("a", lambda message: bytes(message.value) if isinstance(message.value, int) else len(message.value))
    begin(bus)
    for size_bytes in (10, 1_000_000, 10, 30_000, 10):
        assert len(bus.request("a", size_bytes, timeout_s=PATIENCE_S).value) == size_bytes
        assert bus.request("a", bytes(size_bytes), timeout_s=PATIENCE_S).value == size_bytes


def test_lines_that_end_and_begin_again_lose_no_request_and_ask_none_twice(
    broker: ServingThread, bus: clients.Client, other: clients.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.state.topic_line.LINE_LASTING_MESSAGES", 0)
    monkeypatch.setattr("broker.state.lines.LINE_AGAIN_MESSAGES", 1)
    asked: list[object] = []
    over = threading.Event()

    def answer(message: clients.Message) -> object:
        asked.append(message.value)
        return message.value

    def disturb() -> None:
        while not over.is_set():
            with other.subscribe("a"), bus.subscribe("a", overflow="latest"):
                pass
            broker.call(broker.server.state.tenants[""].lines.end_all)

    other.respond("a", answer)
    begin(bus)
    asked.clear()
    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        got = [bus.request("a", number, timeout_s=PATIENCE_S).value for number in range(1000)]
    finally:
        over.set()
        disturbing.join()
    assert got == asked == list(range(1000))


def test_several_requesters_ask_by_their_sockets_and_have_their_replies_on_lines(
    broker: ServingThread, other: clients.Client
) -> None:
    other.respond("a", lambda message: message.value)
    got: dict[int, list[object]] = {}
    lines: list[bool] = []
    together = threading.Barrier(4)

    def ask(number: int) -> None:
        with clients.connect(broker.url, name=f"asker-{number}") as bus:
            bus.request("a", number, timeout_s=PATIENCE_S)
            together.wait(PATIENCE_S)
            got[number] = [bus.request("a", [number, each], timeout_s=PATIENCE_S).value for each in range(200)]
            lines.append(has_line(bus))
            together.wait(PATIENCE_S)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: [[number, each] for each in range(200)] for number in range(4)}
    assert lines == [False] * 4
    broker.call(broker.server.state.drain_lines)
    assert not broker.call(lambda: broker.server.state.own.requests.busy)


def test_a_client_that_asks_itself_reads_the_lines_that_it_writes(bus: clients.Client) -> None:
    bus.respond("a", lambda message: message.value)
    begin(bus)
    assert has_line(bus)
    assert [bus.request("a", number, timeout_s=PATIENCE_S).value for number in range(500)] == list(range(500))


def test_requests_from_many_threads_of_one_client_share_its_lines(bus: clients.Client, other: clients.Client) -> None:
    other.respond("a", lambda message: message.value)
    begin(bus)
    got: dict[int, list[object]] = {}

    def ask(number: int) -> None:
        got[number] = [bus.request("a", [number, each], timeout_s=PATIENCE_S).value for each in range(200)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: [[number, each] for each in range(200)] for number in range(4)}
