"""Responders of the asynchronous client: coroutines, generators and what cancels them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import clients
import clients.aio
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0
Test = Callable[[clients.aio.Client, clients.aio.Client], Awaitable[None]]


def run(broker: ServingThread, test: Test) -> None:
    async def with_clients() -> None:
        async with (
            await clients.aio.connect(broker.url, name="first") as bus,
            await clients.aio.connect(broker.url, name="second") as other,
        ):
            await asyncio.wait_for(test(bus, other), 2 * PATIENCE_S)

    asyncio.run(with_clients())


class Slow:
    """A coroutine function that never returns and notes what becomes of it."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, message: clients.Message) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert message.cancelled
            self.cancelled.set()
            raise


def test_a_coroutine_is_cancelled_when_the_request_times_out(tcp_broker: ServingThread) -> None:
    async def test(bus: clients.aio.Client, other: clients.aio.Client) -> None:
        slow = Slow()
        await other.respond("slow", slow)
        # One that was given up before it came, as it may be on a busy machine, is not shown to the responder.
        while not slow.started.is_set():
            with pytest.raises(clients.TimeoutError):
                await bus.request("slow", timeout_s=1.0)
        await slow.cancelled.wait()

    run(tcp_broker, test)


def test_a_cancelled_request_cancels_the_coroutine(tcp_broker: ServingThread) -> None:
    async def test(bus: clients.aio.Client, other: clients.aio.Client) -> None:
        slow = Slow()
        await other.respond("slow", slow)
        for asked in (bus.request("slow", timeout_s=PATIENCE_S), anext(bus.request_many("slow", timeout_s=None))):
            task = asyncio.ensure_future(asked)
            await slow.started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await slow.cancelled.wait()
            slow.started.clear()
            slow.cancelled.clear()

    run(tcp_broker, test)


def test_a_requester_that_is_gone_cancels_the_coroutine(tcp_broker: ServingThread) -> None:
    async def test(bus: clients.aio.Client, other: clients.aio.Client) -> None:
        slow = Slow()
        await other.respond("slow", slow)
        task = asyncio.ensure_future(bus.request("slow", timeout_s=PATIENCE_S))
        await slow.started.wait()
        await bus.close()
        await slow.cancelled.wait()
        with pytest.raises(clients.ConnectionClosed):
            await task

    run(tcp_broker, test)


def test_an_asynchronous_generator_streams_and_is_closed(tcp_broker: ServingThread) -> None:
    async def test(bus: clients.aio.Client, other: clients.aio.Client) -> None:
        closed = asyncio.Event()

        async def count(message: clients.Message) -> AsyncIterator[int]:
            try:
                for number in range(message.value):
                    await asyncio.sleep(0)
                    yield number
            finally:
                closed.set()

        await other.respond("count", count)
        replies = bus.request_many("count", 2000, timeout_s=None)
        assert [reply.value async for reply in replies] == list(range(2000))
        assert replies.complete
        await closed.wait()
        closed.clear()
        async with bus.request_many("count", 1 << 40, timeout_s=None) as replies:
            assert (await anext(replies)).value == 0
        await closed.wait()
        closed.clear()
        async for reply in bus.request_many("count", 1 << 40, timeout_s=None):
            assert reply.value == 0
            break
        await closed.wait()

    run(tcp_broker, test)


def test_a_slow_answer_holds_up_no_other_one(tcp_broker: ServingThread) -> None:
    async def test(bus: clients.aio.Client, other: clients.aio.Client) -> None:
        gate = asyncio.Event()

        async def answer(message: clients.Message) -> object:
            if message.value == "wait":
                await gate.wait()
            return message.value

        await other.respond("echo", answer)
        waiting = asyncio.ensure_future(bus.request("echo", "wait", timeout_s=PATIENCE_S))
        assert (await bus.request("echo", "go", timeout_s=PATIENCE_S)).value == "go"
        gate.set()
        assert (await waiting).value == "wait"

    run(tcp_broker, test)


def test_as_many_answers_as_there_may_be_at_once_make_the_rest_wait(
    tcp_broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.aio.responding.REPLY_STREAMS_MAX", 2)

    async def test(bus: clients.aio.Client, other: clients.aio.Client) -> None:
        gate, running = asyncio.Event(), []

        async def answer(message: clients.Message) -> object:
            running.append(message.value)
            await gate.wait()
            return message.value

        await other.respond("echo", answer)
        asked = [asyncio.ensure_future(bus.request("echo", number, timeout_s=PATIENCE_S)) for number in range(5)]
        await other.respond("probe", lambda message: list(running))
        while len(running) < 2:
            await bus.request("probe", timeout_s=PATIENCE_S)
        assert (await bus.request("probe", timeout_s=PATIENCE_S)).value == [0, 1]
        gate.set()
        assert [(await each).value for each in asked] == list(range(5))

    run(tcp_broker, test)


def test_a_responder_may_ask_itself(tcp_broker: ServingThread) -> None:
    async def test(bus: clients.aio.Client, other: clients.aio.Client) -> None:
        async def factorial(message: clients.Message) -> int:
            number = message.value
            if number < 2:
                return 1
            return number * (await other.request("factorial", number - 1, timeout_s=PATIENCE_S)).value

        await other.respond("factorial", factorial)
        assert (await bus.request("factorial", 20, timeout_s=PATIENCE_S)).value == 2432902008176640000

    run(tcp_broker, test)


def test_what_a_coroutine_or_generator_raises_reaches_the_requester(tcp_broker: ServingThread) -> None:
    async def test(bus: clients.aio.Client, other: clients.aio.Client) -> None:
        async def fail(message: clients.Message) -> object:
            raise ValueError("no such layer")

        async def fail_later(message: clients.Message) -> AsyncIterator[int]:
            yield 1
            raise ValueError("no more")

        await other.respond("fail", fail)
        await other.respond("later", fail_later)
        with pytest.raises(clients.RequestFailed, match="ValueError: no such layer"):
            await bus.request("fail", timeout_s=PATIENCE_S)
        replies = bus.request_many("later", timeout_s=None)
        assert (await anext(replies)).value == 1
        with pytest.raises(clients.RequestFailed, match="ValueError: no more"):
            await anext(replies)

    run(tcp_broker, test)


def test_closing_the_client_cancels_what_it_answers(tcp_broker: ServingThread) -> None:
    async def test(bus: clients.aio.Client, other: clients.aio.Client) -> None:
        slow = Slow()
        await other.respond("slow", slow)
        task = asyncio.ensure_future(bus.request("slow", timeout_s=PATIENCE_S))
        await slow.started.wait()
        await other.close()
        await slow.cancelled.wait()
        with pytest.raises(clients.ResponderLost):
            await task

    run(tcp_broker, test)
