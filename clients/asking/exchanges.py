"""What a client is asked as a responder: requests that are being answered or were lately, and how far. Pure.

    request --receive--> new         the function runs
                         running     nothing: its reply will come, to the newest inbox
                         running, and has sent a part    that part may be lost: it stops, and the function runs again
                         answered    the same replies again; when they were too long to keep, the function runs again

A requester's credit bounds how many replies that are not the last may be under way to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from broker.limits import (
    REPLIES_AHEAD,
    REPLIES_AHEAD_BYTES,
    REPLIES_KEPT_BYTES,
    REPLIES_KEPT_BYTES_MAX,
    REQUESTS_REMEMBERED,
    REQUESTS_REMEMBERED_S,
)
from broker.protocol.frames import Frame
from clients.connection.signals import Signal
from clients.reading.messages import Message

if TYPE_CHECKING:
    from clients.publishing.outbound import Outbound

Call = Callable[[Callable[[], object]], object]
"""Calls a function of the application soon, outside of the client's lock."""
UNBOUND: Final = 1 << 60
CANCELLED_EARLY_MAX: Final = 1024
"""Cancellations that are remembered because they have overtaken their requests, which wait in a slower lane."""


class Exchange(Signal):
    """One request and its replies; ready while another reply may be sent, or none is wanted any more.

    Attributes:
        inbox: where replies go.
        cancelled: the requester wants no more replies.
        over: the last reply was said.
        sent: replies that have left.
        sending: the reply that is leaving.
        kept: the replies, for a repeated request; None when they are too long.
    """

    __slots__ = (
        "_credit_bytes", "_credit_messages", "_on_cancel", "_table", "cancelled", "inbox", "kept", "kept_bytes",
        "number", "over", "seen_ns", "sending", "sent",
    )  # fmt: skip

    def __init__(self, table: Exchanges, number: int, inbox: str, seen_ns: int) -> None:
        # As Signal begins, without the call.
        self.ready, self.callbacks = True, []
        self._table = table
        self.number = number
        self.inbox = inbox
        self.seen_ns = seen_ns
        self.cancelled = self.over = False
        self.sent = 0
        self.sending: Outbound | None = None
        self.kept: list[Outbound] | None = []
        self.kept_bytes = 0
        # A requester that does not number its requests cannot give credit either.
        self._credit_messages = REPLIES_AHEAD if number else UNBOUND
        self._credit_bytes = REPLIES_AHEAD_BYTES if number else UNBOUND
        self._on_cancel: list[Callable[[], object]] = []

    def move(self, inbox: str) -> None:
        """The requester waits at another inbox now."""
        self.inbox = inbox
        if self.sending is not None:
            self.sending.topic = inbox

    def said(self, message: Outbound) -> None:
        """A reply has left, or would have if somebody wanted it."""
        self.sent += 1
        self.over = self.over or message.last
        if self.over:
            self._on_cancel.clear()
        size_bytes = len(message.payload)
        if not message.last:
            self._credit_messages -= 1
            self._credit_bytes -= size_bytes
            if not self.cancelled and (self._credit_messages <= 0 or self._credit_bytes <= 0):
                self.clear()
        if self.kept is None or self.kept_bytes + size_bytes > REPLIES_KEPT_BYTES or self.sent > REPLIES_AHEAD:
            self._table.kept_bytes -= self.kept_bytes
            self.kept, self.kept_bytes = None, 0
            return
        self.kept_bytes += size_bytes
        self._table.kept_bytes += size_bytes
        # The value's memory is the application's again, and shared memory is for what is under way.
        message.payload = bytes(message.payload)
        message.value = message.place = None
        self.kept.append(message)

    def again(self) -> list[Outbound]:
        """The kept replies, for the newest inbox."""
        for message in self.kept or ():
            message.topic = self.inbox
        return list(self.kept or ())

    def grant(self, messages: int, size_bytes: int) -> None:
        """The requester has taken replies."""
        self._credit_messages = min(REPLIES_AHEAD, self._credit_messages + messages)
        self._credit_bytes = min(REPLIES_AHEAD_BYTES, self._credit_bytes + size_bytes)
        if self._credit_messages > 0 and self._credit_bytes > 0:
            self.set()

    def cancel(self) -> None:
        """Nobody wants more replies."""
        if self.cancelled:
            return
        self.cancelled = True
        self.set()
        if not self.over:
            self.call_on_cancel()

    def on_cancel(self, function: Callable[[], object]) -> None:
        """Has a function called when it is cancelled, or soon if it is."""
        self._on_cancel.append(function)
        if self.cancelled:
            self.call_on_cancel()

    def call_on_cancel(self) -> None:
        """Calls what is to be called, each once, although two threads may be here."""
        while self._on_cancel:
            try:
                function = self._on_cancel.pop()
            except IndexError:
                return
            self._table.call(function)

    def __repr__(self) -> str:
        state = "over" if self.over else "cancelled" if self.cancelled else "running"
        return f"<Exchange {self.number} {state} to {self.inbox} sent={self.sent}>"


class Request(Message):
    """A message that a responder's function is to answer."""

    def __init__(self, message: Message) -> None:
        """Args:
        message: as it came.
        """
        self.fill(
            message._publication, message.sequence, message.published_ns, message._lane, message._content,
            message._body, message._payload, message._reply,
        )  # fmt: skip
        self._decoded, self._device = message._decoded, message._device
        self.exchange: Exchange | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the requester has given up, or is gone: replies go nowhere."""
        return self.exchange is not None and self.exchange.cancelled

    def on_cancel(self, function: Callable[[], object]) -> None:
        """Has a function called, once, when the requester gives up.

        Args:
            function: called without arguments: on a thread of its own, with an asynchronous client on its loop.
        """
        if self.exchange is not None:
            self.exchange.on_cancel(function)


class Exchanges:
    """The requests of one responder.

    Attributes:
        call: calls a function of the application soon.
        kept_bytes: of the replies that are kept.
    """

    def __init__(self, early: dict[tuple[int, str], None], call: Call) -> None:
        """Made by `Responders.add`."""
        self.call = call
        self.kept_bytes = 0
        self._early = early
        self._by_number: dict[int, Exchange] = {}

    def receive(self, message: Message, now_ns: int) -> Request | Exchange | None:
        """A request has come.

        Returns:
            What the function is to answer; or an exchange whose kept replies are to be sent again; or None.
        """
        body = message.body
        number, inbox = body.request, body.reply_to
        if self._by_number:
            self._forget_old(now_ns)
        if self._early and (number, inbox) in self._early:
            del self._early[number, inbox]
            return None
        known = self._by_number.get(number)
        if known is not None:
            known.move(inbox)
            if known.over and known.kept is not None:
                return known
            if not known.over and not known.cancelled and not known.sent:
                return None
            known.cancel()
            self.forget(known)
        exchange = Exchange(self, number, inbox, now_ns)
        if number:
            self._by_number[number] = exchange
        request = Request(message)
        request.exchange = exchange
        return request

    def forget(self, exchange: Exchange) -> None:
        """When the request is repeated, it is a new one."""
        if self._by_number.get(exchange.number) is exchange:
            del self._by_number[exchange.number]
            self.kept_bytes -= exchange.kept_bytes

    def _forget_old(self, now_ns: int) -> None:
        """Keeps what is remembered within its bounds, the oldest going first."""
        old_ns = now_ns - int(REQUESTS_REMEMBERED_S * 1e9)
        while self._by_number:
            oldest = next(iter(self._by_number.values()))
            too_many = len(self._by_number) >= REQUESTS_REMEMBERED or self.kept_bytes > REPLIES_KEPT_BYTES_MAX
            if not too_many and (oldest.seen_ns > old_ns or not (oldest.over or oldest.cancelled)):
                return
            self.forget(oldest)

    def cancel(self, number: int, inbox: str) -> bool:
        """A requester has given up; says whether its request is known."""
        exchange = self._by_number.get(number)
        if exchange is None:
            return False
        # Not when it has asked again from another inbox meanwhile.
        if exchange.inbox == inbox:
            exchange.cancel()
        return True

    def grant(self, number: int, inbox: str, messages: int, size_bytes: int) -> None:
        """A requester has taken replies."""
        exchange = self._by_number.get(number)
        if exchange is not None and exchange.inbox == inbox:
            exchange.grant(messages, size_bytes)

    def disconnected(self) -> None:
        """The connection is gone: requesters take what was not complete for lost."""
        for exchange in list(self._by_number.values()):
            if exchange.sent and not exchange.over:
                exchange.cancel()

    def close(self) -> None:
        """No more replies will be sent."""
        for exchange in list(self._by_number.values()):
            if not exchange.over:
                exchange.cancel()


class Responders:
    """The responders of one client."""

    def __init__(self) -> None:
        self._tables: WeakSet[Exchanges] = WeakSet()
        self._early: dict[tuple[int, str], None] = {}

    def add(self, call: Call) -> Exchanges:
        """Another responder, as long as somebody refers to it.

        Args:
            call: calls a function of the application soon, outside of the client's lock.
        """
        table = Exchanges(self._early, call)
        self._tables.add(table)
        return table

    def cancel(self, frame: Frame) -> None:
        """CANCEL: a requester has given up."""
        key = frame.sequence, f"$inbox/{frame.number}"
        known = [table.cancel(*key) for table in self._tables]
        if not any(known):
            self._early[key] = None
            if len(self._early) > CANCELLED_EARLY_MAX:
                del self._early[next(iter(self._early))]

    def credit(self, frame: Frame) -> None:
        """CREDIT: a requester has taken replies."""
        for table in self._tables:
            table.grant(frame.sequence, f"$inbox/{frame.number}", frame.count, frame.total_bytes)

    def disconnected(self) -> None:
        """The connection is gone."""
        self._early.clear()
        for table in self._tables:
            table.disconnected()

    def close(self) -> None:
        """The client is closed."""
        for table in self._tables:
            table.close()
