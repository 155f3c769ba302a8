"""Server-sent events (WHATWG HTML, section 9.2) to a bounded number of viewers, of whom none holds anything up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

STALL_S: Final = 30.0
"""A viewer that has not read for so long is let go."""
_HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Streams:
    """The streams of one kind that are open; the server's loop may call.

    Attributes:
        open: how many.
        stopping: set when all are to end.
    """

    def __init__(self, what: str, most: int) -> None:
        """Args:
        what: they are, in words, for who is refused.
        most: may be open at the same time.
        """
        self.open = 0
        self.stopping = asyncio.Event()
        self._what = what
        self._most = most

    async def serve(
        self, request: web.Request, tell: Callable[[web.StreamResponse], Awaitable[None]]
    ) -> web.StreamResponse:
        """Answers a request with a stream, which ends when `tell` does or when nobody reads it; or refuses one too
        many."""
        if self.open >= self._most:
            return web.json_response({"error": f"{self._most} {self._what} are open already: close one"}, status=503)
        response = web.StreamResponse(headers=_HEADERS)
        self.open += 1
        try:
            await response.prepare(request)
            await tell(response)
        except (ConnectionResetError, TimeoutError):
            # The viewer is gone, or has stopped reading.
            return response
        finally:
            self.open -= 1
        return response

    async def send(self, response: web.StreamResponse, event: bytes) -> None:
        """Sends one event.

        Raises:
            ConnectionResetError: the viewer is gone.
            TimeoutError: it has not read for STALL_S.
        """
        async with asyncio.timeout(STALL_S):
            await response.write(b"data: " + event + b"\n\n")

    async def pause(self, duration_s: float) -> None:
        """Waits, or until the streams are to end."""
        try:
            async with asyncio.timeout(duration_s):
                await self.stopping.wait()
        except TimeoutError:
            return

    def __repr__(self) -> str:
        return f"<Streams {self._what} open={self.open}>"
