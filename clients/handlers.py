"""The client's own thread, on which handlers and responders run.

It starts with the first handler. A handler runs without any lock, so it may use the client; handlers of one client run
one after the other. What a handler raises is logged and goes nowhere else; what a responder raises goes to the
requester.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from broker.errors import BrokerError
from clients import operations
from clients.driver import Driver
from clients.incoming import SubscriptionState
from clients.messages import DEFERRED, Message
from clients.signals import Signal

log = logging.getLogger(__name__)
FAILED: Final = object()
"""In place of what a handler returns that has raised."""

Handler = Callable[[Message], object]


class Handlers:
    """The handlers of one client."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._work = Signal()
        self._due: dict[SubscriptionState, None] = {}
        # In the order of their turns, each once, however many messages it has.
        self._handlers: dict[SubscriptionState, Handler] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False

    def add(self, subscription: SubscriptionState, handler: Handler) -> None:
        """From now on a handler gets the subscription's messages."""
        with self._driver.lock:
            self._handlers[subscription] = handler

            def due() -> None:
                if subscription not in self._due:
                    self._due[subscription] = None
                    self._work.set()

            subscription.on_message = due
            # What is replayed may be here before its handler. A `latest` subscription has to ask for its first message.
            due()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"tensorbus-handlers-{self._driver.core.name}", daemon=True
                )
                self._thread.start()
        # The thread may be waiting at the connection, where nothing that is here already would wake it.
        self._driver.notify()

    def stop(self) -> None:
        """The thread ends when its current handler has returned."""
        with self._driver.lock:
            self._stopping = True
            self._work.set()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._driver.notify()
            thread.join()

    def _run(self) -> None:
        driver = self._driver
        while True:
            with driver.lock:
                driver.block(self._work, None, "messages for handlers")
                if self._stopping:
                    return
                due = next(iter(self._due), None)
                if due is None:
                    self._work.clear()
                    continue
                del self._due[due]
                message, handler = operations.take(driver, due), self._handlers[due]
                if due.pending:
                    self._due[due] = None
                elif due.closed is not None:
                    del self._handlers[due]
            if message is not None:
                self._call(handler, message)
                if due.is_latest:
                    with driver.lock:
                        if due in self._handlers:
                            self._due[due] = None
                            self._work.set()

    def _call(self, handler: Handler, message: Message) -> None:
        try:
            outcome = handler(message)
        except BaseException:
            # Also SystemExit: the thread is the client's, and the other handlers go on.
            log.exception("handler.failed topic=%r", message.topic)
            outcome = FAILED
        settle_handled(message, outcome)


def settle_handled(message: Message, outcome: object) -> None:
    """Settles a job for its handler, unless that has done it or will: `outcome` is what it returned, or FAILED."""
    if not message.is_job:
        return
    if outcome is FAILED:
        message.nack()
    elif outcome is not DEFERRED:
        message.ack()


def responder(function: Callable[[Message], object]) -> Handler:
    """A handler that replies with what a function returns, or with the error that it raises."""

    def respond(message: Message) -> None:
        if not message.is_request:
            return
        try:
            value = function(message)
        except BaseException as error:
            log.exception("responder.failed topic=%r", message.topic)
            _reply_error(message, error)
        else:
            if value is DEFERRED:
                return
            try:
                message.reply(value)
            except BrokerError as error:
                log.exception("responder.reply_failed topic=%r", message.topic)
                _reply_error(message, error)

    return respond


def _reply_error(message: Message, error: BaseException) -> None:
    try:
        message.reply_error(f"{type(error).__name__}: {error}")
    except BrokerError:
        log.exception("responder.unreachable topic=%r", message.topic)
