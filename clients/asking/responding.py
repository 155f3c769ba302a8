"""Responders of the synchronous client: functions and generators that answer requests.

A generator's values are replies. It runs one step at a time, in turn with the client's other handlers, and only while
its requester has room: a slow requester holds up nobody else. When the requester gives up, the generator is closed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from types import GeneratorType

from broker.errors import BrokerError, ConnectionClosed, LimitExceeded
from broker.limits import REPLY_STREAMS_MAX
from clients.asking import requesting
from clients.asking.exchanges import Exchange, Exchanges, Request
from clients.reading.handlers import Handlers
from clients.reading.messages import DEFERRED, Message

log = logging.getLogger(__name__)


class Responder:
    """A handler that replies with what a function returns or yields, or with the error that it raises."""

    def __init__(self, handlers: Handlers, exchanges: Exchanges, function: Callable[[Request], object]) -> None:
        """Made by `Client.respond`."""
        self.handlers = handlers
        self._exchanges = exchanges
        self._function = function

    def __call__(self, message: Message) -> None:
        """Answers one request."""
        if not message.is_request:
            return
        driver = self.handlers.driver
        with driver.lock:
            asked = self._exchanges.receive(message, time.monotonic_ns())
        if isinstance(asked, Exchange):
            driver.run(requesting.repeat(driver, asked))
        elif asked is not None:
            self._answer(asked)

    def _answer(self, request: Request) -> None:
        try:
            value = self._function(request)
        except BaseException as error:
            log.exception("responder.failed topic=%r", request.topic)
            self.reply_error(request, error)
            return
        if isinstance(value, GeneratorType):
            stream = ReplyStream(self, request, value)
            streams = len(self.handlers.streams)
            if streams > REPLY_STREAMS_MAX:
                stream.close()
                advice = "this client answers too many requests with generators at the same time"
                limit = LimitExceeded("reply_streams_max", streams, REPLY_STREAMS_MAX, advice)
                self.reply_error(request, limit)
            else:
                stream.go_on()
        elif value is not DEFERRED and not (request.exchange is not None and request.exchange.over):
            self.reply(request, value, last=True)

    def reply(self, request: Request, value: object, *, last: bool) -> bool:
        """Sends a reply; when that fails, the requester gets the error. Says whether it was sent."""
        try:
            request.reply(value, last=last)
        except ConnectionClosed:
            # If it is repeated on the next connection, it is a new request.
            log.exception("responder.reply_failed topic=%r", request.topic)
            self.forget(request)
        except BrokerError as error:
            log.exception("responder.reply_failed topic=%r", request.topic)
            self.reply_error(request, error)
        else:
            return True
        return False

    def reply_error(self, request: Request, error: BaseException) -> None:
        """Tells the requester what went wrong."""
        try:
            request.reply_error(f"{type(error).__name__}: {error}")
        except BrokerError:
            log.exception("responder.unreachable topic=%r", request.topic)
            self.forget(request)

    def end(self, request: Request) -> None:
        """Tells the requester that no more replies follow."""
        try:
            request.end()
        except BrokerError:
            log.exception("responder.unreachable topic=%r", request.topic)
            self.forget(request)

    def forget(self, request: Request) -> None:
        """When the request is repeated, it is a new one."""
        with self.handlers.driver.lock:
            if request.exchange is not None:
                self._exchanges.forget(request.exchange)


class ReplyStream:
    """A generator that answers a request."""

    def __init__(self, responder: Responder, request: Request, generator: GeneratorType[object, None, object]) -> None:
        self._responder = responder
        self._request = request
        self._generator = generator
        responder.handlers.streams.add(self)

    def go_on(self) -> None:
        """Runs the next step in its turn, when the requester has room or has given up."""
        exchange = self._request.exchange
        assert exchange is not None
        self._responder.handlers.add_step(self.step, exchange)

    def step(self) -> None:
        """Sends the generator's next value."""
        request, responder = self._request, self._responder
        if request.cancelled:
            self.close()
            return
        try:
            value = next(self._generator)
        except StopIteration:
            self.close()
            responder.end(request)
        except BaseException as error:
            log.exception("responder.failed topic=%r", request.topic)
            self.close()
            responder.reply_error(request, error)
        else:
            if responder.reply(request, value, last=False):
                self.go_on()
            else:
                self.close()

    def close(self) -> None:
        """Ends the generator, once; does nothing while it runs."""
        if self._generator.gi_running:
            return
        self._responder.handlers.streams.discard(self)
        try:
            self._generator.close()
        except BaseException:
            log.exception("responder.close_failed topic=%r", self._request.topic)


class Callbacks:
    """Calls functions one after the other, on a thread that lives while there are any.

    Not on the handlers' thread: the handler that runs there may be the one that is to be told.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._running = False

    def __call__(self, function: Callable[[], object]) -> None:
        """Calls a function soon."""
        with self._lock:
            self._waiting.append(function)
            if self._running:
                return
            try:
                threading.Thread(target=self._run, name="tensorbus-cancelled", daemon=True).start()
            except RuntimeError as error:
                # With the next one; the requester has gone, and whoever reads for everybody is not to fail for that.
                log.error("on_cancel.late cause=%s", error)
                return
            self._running = True

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return
                function = self._waiting.popleft()
            try:
                function()
            except BaseException:
                log.exception("on_cancel.failed")
