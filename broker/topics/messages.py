"""A message in the broker, whole or still arriving.

A small message is one record with its payload. A large one arrives in chunks and is forwarded as they come: its record
points at a linked list of chunks, every reader holds the chunk that it has reached, and a chunk is freed by itself when
the last reader has moved past it:

    Message.stream --> Stream.last -------------------.
                                                      v
    Message.first --> Chunk --next--> Chunk --next--> Chunk      (first is kept while the ring or a queue holds the
    message)
                        ^               ^
                     reader A        reader B
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from broker.buffers import Buffer

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython


@cython.trashcan(True)
@cython.cclass
class Chunk:
    """A piece of a large message."""

    __slots__ = ("_bytes", "_view", "following")

    def __init__(self, payload: Buffer, view: Callable[[], Buffer] | None = None) -> None:
        """Args:
        payload: its bytes.
        view: in place of them, makes the bytes of a message in shared memory, and keeps them where they are. Most
            are passed on as they lie there, and nobody here looks at them.
        """
        self._bytes = payload
        self._view = view
        self.following: Chunk | None = None

    def data(self) -> Buffer:
        """The bytes."""
        if self._view is not None:
            self._bytes, self._view = self._view(), None
        return self._bytes

    def own(self) -> None:
        """Copies the bytes, which lie in its own memory from here on."""
        self._bytes = bytes(self.data())


_NOTHING: Final = Chunk(b"")


class Waiter(Protocol):
    """A reader of a stream that has reached its end for now."""

    def resume(self) -> None:
        """Called when the stream goes on, is complete, or is aborted."""
        ...


class Watcher(Protocol):
    """A subscription that may give a large message up."""

    def watch(self, message: Message) -> bool:
        """Called as the message grows; says whether it is still wanted."""
        ...


class Trace(Protocol):
    """Whoever follows a message that is traced."""

    def delivered(self, subscriber: str, queue_group: str) -> None:
        """Called when the message, or its beginning, has been handed to a subscriber's link."""
        ...


class Stream:
    """The arriving side of a large message.

    Attributes:
        last: the newest chunk; at first an empty one, so that readers have something to hold.
        received_bytes: what has arrived.
        complete: all has arrived.
        aborted: why it never will, or None.
        waiters: readers that wait for more.
        watchers: subscriptions that may be too slow and then give the message up; the broker's state asks them.
        loan: of a message that lies in shared memory, what keeps it there.
    """

    __slots__ = ("__weakref__", "aborted", "complete", "last", "loan", "received_bytes", "waiters", "watchers")

    def __init__(self) -> None:
        self.last = Chunk(b"")
        self.received_bytes = 0
        self.complete = False
        self.aborted: str | None = None
        self.waiters: list[Waiter] = []
        self.watchers: list[Watcher] = []
        self.loan: object = None

    def own(self) -> None:
        """Copies what lies in shared memory, which it needs no more from here on."""
        if self.loan is not None:
            self.last.own()
            self.loan = None

    def append(self, payload: Buffer, complete: bool) -> None:
        """Adds the next chunk and wakes the readers."""
        chunk = Chunk(payload)
        self.last.following = chunk
        self.last = chunk
        self.received_bytes += len(payload)
        self.complete = complete
        self._wake()

    def abort(self, reason: str) -> None:
        """The publisher will not finish."""
        self.aborted = reason
        self._wake()

    def let_go(self) -> None:
        """No new reader will come: whoever still reads holds the chunk at which it is."""
        if self.complete:
            self.loan = None
            self.last = _NOTHING

    def _wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.resume()


def shared_stream(loan: object, size_bytes: int, view: Callable[[], Buffer]) -> tuple[Stream, Chunk]:
    """The stream of a message that lies in shared memory, and the chunk from which readers start.

    Args:
        loan: what keeps it there.
        size_bytes: how long it is.
        view: makes its bytes, which keep the loan too.
    """
    # Without __init__, for which Python would make tuples: what is added there is to be added here.
    stream, first, last = Stream.__new__(Stream), Chunk.__new__(Chunk), Chunk.__new__(Chunk)
    first._bytes, first._view, first.following = b"", None, last
    last._bytes, last._view, last.following = b"", view, None
    stream.last, stream.loan = last, loan
    stream.received_bytes, stream.complete, stream.aborted = size_bytes, True, None
    stream.waiters, stream.watchers = [], []
    return stream, first


@cython.freelist(8)
@cython.cclass
class Message:
    """One message, or one unopened batch of `count` messages, as all its subscribers share it.

    Attributes:
        topic: its name.
        sender: the publisher's name.
        sequence: of the (first) message in its topic, from 1 upwards.
        count: messages in it.
        size_bytes: payload and body in bytes, of a large message what it will have in all.
        stream: of a large message, its arriving side.
        first: of a large message, the chunk from which a new reader starts; gone when nobody holds the message any
            more.
        holders: how many hold the message for later readers: the publisher's call itself, until the message is in all
            queues; the ring; the queues in which it waits.
        singles: of a batch that somebody has opened, its messages.
        priority: as a job, 0 to 9; the highest goes first.
        trace: of one that is traced, who follows it.
    """

    __slots__ = (
        "body", "content", "count", "first", "flags", "holders", "lane", "payload", "priority", "sender", "sequence",
        "singles", "size_bytes", "stream", "time_ns", "topic", "trace",
    )  # fmt: skip

    def __init__(
        self,
        topic: str,
        sender: str,
        sequence: int,
        count: int,
        lane: int,
        flags: int,
        content: int,
        time_ns: int,
        body: bytes,
        payload: Buffer,
        size_bytes: int,
        stream: Stream | None = None,
        first: Chunk | None = None,
        *,
        priority: int = 0,
    ) -> None:
        self.fill(
            topic, sender, sequence, count, lane, flags, content, time_ns, body, payload, size_bytes, stream, first
        )
        self.priority = priority

    def fill(
        self,
        topic: str,
        sender: str,
        sequence: int,
        count: int,
        lane: int,
        flags: int,
        content: int,
        time_ns: int,
        body: bytes,
        payload: Buffer,
        size_bytes: int,
        stream: Stream | None,
        first: Chunk | None,
    ) -> None:
        """What `__init__` does; compiled, the numbers come here as they are."""
        self.topic = topic
        self.sender = sender
        self.sequence = sequence
        self.count = count
        self.lane = lane
        self.flags = flags
        self.content = content
        self.time_ns = time_ns
        self.body = body
        self.payload = payload
        self.size_bytes = size_bytes
        self.stream = stream
        self.first = first
        self.holders = 1
        self.singles: list[Message] | None = None
        self.priority = 0
        self.trace: Trace | None = None

    def release(self) -> None:
        """One holder fewer."""
        self.holders -= 1
        if not self.holders:
            self.first = None
            if self.stream is not None:
                self.stream.let_go()

    def __repr__(self) -> str:
        return f"<Message {self.topic} sequence={self.sequence} count={self.count} {self.size_bytes} bytes>"


class Assignment(Message):
    """A message as one member of a queue group gets it who is to settle it.

    Attributes:
        delivery: the number by which the member settles it, in its session.
        deliveries: how often the message was delivered, with this time.
    """

    __slots__ = ("deliveries", "delivery")

    def __init__(self, message: Message, flags: int, delivery: int, deliveries: int) -> None:
        super().__init__(
            message.topic, message.sender, message.sequence, 1, message.lane, flags,
            message.content, message.time_ns, message.body, message.payload, message.size_bytes, message.stream,
            message.first,
        )  # fmt: skip
        self.delivery = delivery
        self.deliveries = deliveries
        self.trace = message.trace

    def release(self) -> None:
        """One holder fewer. The stream is the job's, which may be delivered again."""
        self.holders -= 1
        if not self.holders:
            self.first = None
