"""The asynchronous client behind the synchronous one's interface, so that one suite tests both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TypeVar

from clients import aio

T = TypeVar("T")


class AsyncLoop:
    """An event loop on a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60.0)

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
        self._thread.join(60.0)
        assert not self._thread.is_alive(), "the loop did not stop"
        self._loop.close()


class Blocking:
    """Any object of the asynchronous client; its coroutines run to their end."""

    def __init__(self, loop: AsyncLoop, subject: object) -> None:
        self._loop = loop
        self._subject = subject

    def __getattr__(self, name: str) -> object:
        attribute = getattr(self._subject, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: object, **options: object) -> object:
            if inspect.isasyncgenfunction(attribute):
                return self._loop.iterate(attribute(*arguments, **options))

            async def on_loop() -> object:
                outcome = attribute(*arguments, **options)
                return await outcome if inspect.isawaitable(outcome) else outcome

            return self._wrapped(self._loop.run(on_loop()))

        return call

    def _wrapped(self, value: object) -> object:
        return Blocking(self._loop, value) if type(value).__module__.startswith("clients.aio") else value

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
