"""The asynchronous client behind the synchronous one's interface, so that one suite tests both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from clients import aio

T = TypeVar("T")
PATIENCE_S = 60.0
AT_ONCE = 100
"""Calls that a loop's thread makes before the one that waits for it goes on."""


class Call(Generic[T]):
    """A coroutine that one thread waits for while a loop runs it on another one.

    asyncio.run_coroutine_threadsafe does the same for almost twice the processor time, of which tests that publish
    thousands of messages consist.
    """

    def __init__(self, coroutine: Coroutine[object, object, T]) -> None:
        self._coroutine = coroutine
        self._over = threading.Lock()
        self._over.acquire()
        self._outcome: list[T] = []
        self._error: BaseException | None = None

    def begin(self) -> None:
        """On the loop."""
        # A loop does not keep its tasks.
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            self._outcome.append(await self._coroutine)
        except BaseException as error:
            self._error = error
        finally:
            self._over.release()

    def result(self) -> T:
        """What it returns or raises; the loop's thread keeps nothing of it."""
        assert self._over.acquire(timeout=PATIENCE_S), f"{self._coroutine} does not end"
        if self._error is not None:
            try:
                raise self._error
            finally:
                # It has this frame.
                self._error = None
        return self._outcome.pop()


class AsyncLoop:
    """An event loop on a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        call = Call(coroutine)
        self._loop.call_soon_threadsafe(call.begin)
        return call.result()

    def connect(self, url: str, **options: object) -> Blocking:
        return Blocking(self, self.run(aio.connect(url, **options)))

    def iterate(self, iterator: AsyncIterator[object]) -> Iterator[object]:
        async def following() -> object:
            return await anext(iterator)

        while True:
            try:
                yield self.run(following())
            except StopAsyncIteration:
                return

    def close(self) -> None:
        # Nothing of it is to run on, or be found by the garbage collector, in another test.
        self.run(self._loop.shutdown_asyncgens())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the loop did not stop"
        self._loop.close()


class Method:
    """A method of an object of the asynchronous client."""

    def __init__(self, loop: AsyncLoop, method: Callable[..., object]) -> None:
        self._loop = loop
        self._method = method

    def __call__(self, *arguments: object, **options: object) -> object:
        if inspect.isasyncgenfunction(self._method):
            return self._loop.iterate(self._method(*arguments, **options))

        async def on_loop() -> object:
            outcome = self._method(*arguments, **options)
            return await outcome if inspect.isawaitable(outcome) else outcome

        outcome = self._loop.run(on_loop())
        return Blocking(self._loop, outcome) if type(outcome).__module__.startswith("clients.aio") else outcome

    def for_each(self, calls: Sequence[Mapping[str, object]]) -> list[object]:
        """See the function."""

        async def on_loop(some: Sequence[Mapping[str, object]]) -> list[object]:
            return [await self._method(**options) for options in some]

        starts = range(0, len(calls), AT_ONCE)
        return [each for start in starts for each in self._loop.run(on_loop(calls[start : start + AT_ONCE]))]


def for_each(method: Callable[..., T], calls: Sequence[Mapping[str, object]]) -> list[T]:
    """Calls a method of a client of either kind so often, and returns what each has given.

    What is asynchronous does some calls at once, as to go to another thread for each takes longer than what it does.
    """
    if isinstance(method, Method):
        return method.for_each(calls)
    return [method(**options) for options in calls]


class Blocking:
    """Any object of the asynchronous client; its coroutines run to their end."""

    def __init__(self, loop: AsyncLoop, subject: object) -> None:
        self._loop = loop
        self._subject = subject

    def __getattr__(self, name: str) -> object:
        attribute = getattr(self._subject, name)
        if not callable(attribute):
            return attribute

        return Method(self._loop, attribute)

    def __iter__(self) -> Iterator[object]:
        return self._loop.iterate(aiter(self._subject))

    def __next__(self) -> object:
        async def following() -> object:
            return await anext(self._subject)

        try:
            return self._loop.run(following())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Blocking:
        self._loop.run(self._subject.__aenter__())
        return self

    def __exit__(self, *details: object) -> None:
        self._loop.run(self._subject.__aexit__(*details))
