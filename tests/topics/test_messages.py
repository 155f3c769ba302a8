"""Messages, chunks and who holds them."""

from __future__ import annotations

import threading
import weakref

import pytest

from broker.topics.messages import Message, Stream


class Reader:
    """A waiter that notes what it is told."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.seen: list[tuple[int, bool, str | None]] = []

    def resume(self) -> None:
        self.seen.append((self.stream.received_bytes, self.stream.complete, self.stream.aborted))


class Payload(bytearray):
    """A payload that can be watched."""

    __slots__ = ("__weakref__",)


def message(stream: Stream | None = None, body: bytes = b"", payload: bytes = b"") -> Message:
    total = 100 if stream is not None else len(payload)
    first = None if stream is None else stream.last
    return Message("a", "p", 1, 1, 1, 0, 1, 0, body, payload, total + len(body), stream, first)


def test_the_size_of_a_message_is_that_of_body_and_payload() -> None:
    assert message(body=b"12", payload=b"345").size_bytes == 5
    assert message(Stream(), body=b"12").size_bytes == 102


def test_waiters_are_woken_once_by_what_comes_next() -> None:
    stream = Stream()
    reader = Reader(stream)
    stream.waiters.append(reader)
    stream.append(b"abc", complete=False)
    stream.append(b"de", complete=True)
    assert reader.seen == [(3, False, None)]
    assert stream.received_bytes == 5
    assert stream.complete


def test_a_waiter_that_waits_again_while_it_is_woken_is_kept_for_the_next_time() -> None:
    stream = Stream()

    class Again(Reader):
        def resume(self) -> None:
            super().resume()
            stream.waiters.append(self)

    reader = Again(stream)
    stream.waiters.append(reader)
    stream.append(b"a", complete=False)
    stream.abort("gone")
    assert reader.seen == [(1, False, None), (1, False, "gone")]


def test_a_reader_walks_from_the_first_chunk_to_the_last() -> None:
    stream = Stream()
    its = message(stream)
    for payload in (b"a", b"b", b"c"):
        stream.append(payload, complete=payload == b"c")
    chunk, found = its.first, []
    while chunk is not None and (chunk := chunk.following) is not None:
        found.append(chunk.data())
    assert found == [b"a", b"b", b"c"]


@pytest.mark.parametrize("released", [False, True])
def test_chunks_live_as_long_as_somebody_holds_the_message(released: bool) -> None:
    stream = Stream()
    its = message(stream)
    payload = Payload(b"x")
    watched = weakref.ref(payload)
    stream.append(payload, complete=False)
    del payload
    stream.append(b"y", complete=False)
    if released:
        its.release()
    assert (watched() is None) is released


def test_only_the_last_holder_lets_the_chunks_go() -> None:
    its = message(Stream())
    its.holders += 1
    its.release()
    assert its.first is not None
    its.release()
    assert its.first is None


def test_a_chain_of_ever_so_many_chunks_ends_with_its_first_one() -> None:
    stream = Stream()
    its = message(stream)
    for _ in range(300_000):
        stream.append(b"x", False)
    payload = Payload(b"last")
    watched = weakref.ref(payload)
    stream.append(payload, True)
    del payload
    stack_bytes = threading.stack_size(1 << 20)
    try:
        ending = threading.Thread(target=its.release)
        ending.start()
    finally:
        threading.stack_size(stack_bytes)
    ending.join()
    assert watched() is None


def test_repr_is_a_line_for_the_log() -> None:
    assert repr(message(payload=b"abc")) == "<Message a sequence=1 count=1 3 bytes>"
