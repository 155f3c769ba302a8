"""The client's own thread, on which handlers and responders run.

It starts with the first handler. A handler runs without any lock, so it may use the client; handlers of one client run
one after the other. What a handler raises is logged and goes nowhere else; what a responder raises goes to the
requester.

A handler that waits for a reply would keep the responder from running that it waits for, when that one is of the same
client. So it steps aside: another thread runs other handlers meanwhile, and the first one goes on when it has its reply
and the handler that runs at that moment has returned. One handler runs at any time, as coroutines do on a loop.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from broker.errors import LimitExceeded
from broker.limits import HANDLERS_WAITING_MAX
from clients.connection import operations
from clients.connection.driver import Driver
from clients.connection.holding import Hold
from clients.connection.signals import Signal
from clients.reading.messages import DEFERRED, Message
from clients.reading.subscription_state import SubscriptionState

log = logging.getLogger(__name__)
FAILED: Final = object()
"""In place of what a handler returns that has raised."""

Handler = Callable[[Message], object]
Step = Callable[[], None]
_WHAT: Final = "messages for handlers"


class Closable(Protocol):
    """Something that is to be closed with the client."""

    def close(self) -> None:
        """Ends it, once; does nothing while it runs."""
        ...


class Handlers:
    """The handlers of one client.

    Attributes:
        streams: what answers requests in several steps and is not done.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._work = Signal()
        self._turn = Signal(ready=True)
        """Ready while no handler runs."""
        self._due: dict[SubscriptionState | Step, None] = {}
        # In the order of their turns, each once, however many messages it has.
        self._handlers: dict[SubscriptionState, Handler] = {}
        # Messages of a subscription are handled in their order, so not while its handler has stepped aside. A
        # responder's requests have none: it may be asked by its own answer.
        self._in_order: set[SubscriptionState] = set()
        self.streams: set[Closable] = set()
        self._threads: set[threading.Thread] = set()
        self._aside = 0
        self._stopping = False
        self._hold: Hold | None = None
        """From the first handler on: what refers to nothing of the client can be called by it."""

    def add(self, subscription: SubscriptionState, handler: Handler) -> None:
        """From now on a handler gets the subscription's messages.

        Raises:
            LimitExceeded: there can be no thread for it; the subscription is closed.
        """
        with self.driver.lock:
            if not self._threads:
                try:
                    self._start_thread()
                except BaseException:
                    # Nobody would take its messages, and a `block` one would hold its topics back.
                    self.driver.core.unsubscribe(subscription)
                    self.driver.flush()
                    raise
            self._hold = self._hold or self.driver.holding.hold()
            self._handlers[subscription] = handler
            if not subscription.wishes.responder:
                self._in_order.add(subscription)

            def due() -> None:
                if subscription in self._handlers:
                    self._add_due(subscription)

            subscription.on_message = due
            # What is replayed may be here before its handler. A `latest` subscription has to ask for its first message.
            due()
        # The thread may be waiting at the connection, where nothing that is here already would wake it.
        self.driver.notify()

    def add_step(self, step: Step, signal: Signal) -> None:
        """Has a step of something longer run when its turn comes, once a signal is ready."""

        def due() -> None:
            self._add_due(step)

        with self.driver.lock:
            if signal.ready:
                due()
            else:
                signal.callbacks.append(due)

    def _add_due(self, what: SubscriptionState | Step) -> None:
        if what not in self._due:
            self._due[what] = None
            self._work.set()

    def _start_thread(self) -> None:
        name = f"tensorbus-handlers-{self.driver.core.name}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException as error:
            # Ctrl-C may come when it has started; then it goes on, and `_run` has put it in.
            if thread.ident is None:
                self._threads.discard(thread)
            if not isinstance(error, RuntimeError):
                raise
            advice = f"{error}: raise RLIMIT_NPROC (ulimit -u), or pids.max of the container"
            raise LimitExceeded("threads", threading.active_count() + 1, threading.active_count(), advice) from error

    def stop(self) -> None:
        """The threads end when their current handlers have returned."""
        with self.driver.lock:
            self._stopping = True
            self._work.set()
            self._turn.set()
            threads = list(self._threads)
        if threading.current_thread() not in threads:
            self.driver.notify()
            for thread in threads:
                thread.join()
        for stream in list(self.streams):
            stream.close()

    @property
    def run_this_thread(self) -> bool:
        """Whether a handler is what runs on this thread."""
        return bool(self._threads) and threading.current_thread() in self._threads

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """While its context is open, other handlers run. Does nothing on any other thread than a handler's.

        Raises:
            LimitExceeded: as many handlers wait for each other as there may be, or there can be no thread for others.
        """
        if not self.run_this_thread:
            yield
            return
        driver = self.driver
        with driver.lock:
            if self._aside >= HANDLERS_WAITING_MAX:
                advice = "a responder asks itself without end, or handlers wait for each other"
                raise LimitExceeded("handlers_waiting_max", self._aside + 1, HANDLERS_WAITING_MAX, advice)
            if len(self._threads) == self._aside + 1:
                self._start_thread()
            self._aside += 1
            self._turn.set()
        driver.notify()
        try:
            yield
        finally:
            with driver.lock:
                while not self._turn.ready:
                    driver.block(self._turn, None, "the turn of a handler")
                self._turn.clear()
                self._aside -= 1

    def _run(self) -> None:
        driver = self.driver
        has_turn = False
        with driver.lock:
            self._threads.add(threading.current_thread())
        while True:
            with driver.lock:
                if has_turn:
                    has_turn = False
                    self._turn.set()
                    surplus = len(self._threads) - self._aside > 1
                    if self._aside or surplus:
                        driver.wake_waiters()
                    if surplus:
                        # Another thread was started while this one's handler had stepped aside, and takes over.
                        self._threads.discard(threading.current_thread())
                        return
                driver.block(self._work, None, _WHAT)
                if self._stopping:
                    self._threads.discard(threading.current_thread())
                    return
                if not self._turn.ready:
                    driver.block(self._turn, None, _WHAT)
                    continue
                step = self._next()
                if step is None:
                    continue
                self._turn.clear()
                has_turn = True
            step()

    def _next(self) -> Step | None:
        """What is to run next. The lock is held."""
        due = next(iter(self._due), None)
        if due is None:
            self._work.clear()
            return None
        del self._due[due]
        turn = self._turn_of(due) if isinstance(due, SubscriptionState) else due
        if not self._due:
            self._work.clear()
        return turn

    def _turn_of(self, due: SubscriptionState) -> Step | None:
        """The handling of a subscription's next message; None when there is none any more."""
        handler = self._handlers.get(due)
        message = operations.take(self.driver, self.driver.core, due) if handler is not None else None
        if message is not None and due in self._in_order:
            # The rest when this one has been handled.
            del self._handlers[due]
        elif due.pending:
            self._due[due] = None
        elif due.closed is not None:
            self._handlers.pop(due, None)
            self._in_order.discard(due)
        if handler is None or message is None:
            return None
        return _Turn(self, due, handler, message)

    def call(self, subscription: SubscriptionState, handler: Handler, message: Message) -> None:
        """Has a handler handle a message."""
        try:
            outcome = handler(message)
        except BaseException:
            # Also SystemExit: the thread is the client's, and the other handlers go on.
            log.exception("handler.failed topic=%r", message.topic)
            outcome = FAILED
        settle_handled(message, outcome)
        if subscription in self._in_order:
            with self.driver.lock:
                self._handlers[subscription] = handler
                if subscription.pending or subscription.is_latest or subscription.closed is not None:
                    self._add_due(subscription)


class _Turn:
    """A message that is about to be handled."""

    __slots__ = ("_handler", "_handlers", "_message", "_subscription")

    def __init__(self, handlers: Handlers, subscription: SubscriptionState, handler: Handler, message: Message) -> None:
        self._handlers = handlers
        self._subscription = subscription
        self._handler = handler
        self._message = message

    def __call__(self) -> None:
        self._handlers.call(self._subscription, self._handler, self._message)


def settle_handled(message: Message, outcome: object) -> None:
    """Settles a job for its handler, unless that has done it or will: `outcome` is what it returned, or FAILED."""
    if not message.is_job:
        return
    if outcome is FAILED:
        message.nack()
    elif outcome is not DEFERRED:
        message.ack()
