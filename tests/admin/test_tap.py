"""The tap: a message of a topic per interval, looked at as it comes by; it holds nobody up and ends with its viewer."""

from __future__ import annotations

import json
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from urllib.parse import quote

import numpy as np
import pytest

import clients
from broker.admin.tap import TAPS_MAX, Tap, spectator
from broker.protocol.batches import Batch
from broker.protocol.bodies import MessageBody, encode_body
from broker.protocol.frames import Content, Flag
from broker.protocol.tensors import describe
from broker.state.broker_state import BrokerState
from broker.state.settings import Settings
from broker.topics.messages import Chunk, Message, Stream
from tests.admin.test_http import ask, ask_json
from tests.daemon import PATIENCE_S, Daemon
from tests.test_dashboard import page

Told = dict[str, object]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as daemon:
        yield daemon


@contextmanager
def tap(daemon: Daemon, topic: str) -> Iterator[Callable[[], Told]]:
    """A viewer of a topic; gives a function that returns the next event."""
    with page(daemon, f"/api/v1/tap?topic={quote(topic, safe='')}") as stream:
        assert stream.status == 200
        yield lambda: next_told(stream)


def next_told(stream: HTTPResponse) -> Told:
    while not (line := stream.readline()).startswith(b"data: "):
        assert line, "the stream has ended"
    return json.loads(line.removeprefix(b"data: "))  # type: ignore[no-any-return]


def next_seen(tell: Callable[[], Told]) -> dict[str, object]:
    """The next message that is told; events without one are passed over."""
    while True:
        if (message := tell()["message"]) is not None:
            return message  # type: ignore[return-value]


def readers(daemon: Daemon, topic: str) -> int:
    (shown,) = ask_json(daemon, f"/api/v1/topics?filter={quote(topic, safe='')}")["topics"]
    return int(str(shown["subscriptions"]))


def test_the_last_message_that_is_kept_is_shown_first(daemon: Daemon) -> None:
    with clients.connect(daemon.url, name="trainer-0") as bus:
        for step in range(3):
            bus.publish("kept", {"step": step}, headers={"run": "a"})
        bus.flush()
        with tap(daemon, "kept") as tell:
            told = tell()
    message = told["message"]
    assert (told["topic"], told["exists"], told["messages"]) == ("kept", True, 3)
    assert isinstance(message, dict)
    assert (message["sequence"], message["sender"], message["kind"]) == (3, "trainer-0", "value")
    assert (message["text"], message["headers"], message["tensor"]) == ('{"step":2}', {"run": "a"}, None)
    assert float(str(message["ago_s"])) >= 0


def test_a_topic_to_which_nobody_has_published_can_be_watched(daemon: Daemon) -> None:
    with tap(daemon, "silent") as tell:
        assert tell() == {"topic": "silent", "exists": False, "messages": 0, "message": None}


def test_of_many_messages_few_are_told(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, tap(daemon, "busy") as tell:
        tell()
        for number in range(5000):
            bus.publish("busy", number)
        bus.flush()
        # On a busy machine they take several intervals, and each tells of the first one that has come in it.
        seen = [next_seen(tell)]
        while seen[-1]["text"] != "5000":
            bus.publish("busy", 5000, ack="accepted")
            seen.append(next_seen(tell))
    assert len(seen) < 500


@pytest.mark.parametrize("size", [100, 20_000, 3_000_000])
@pytest.mark.parametrize("shared", [False, True], ids=["tcp", "shared memory"])
def test_a_tensor_of_any_length_is_told_by_its_range_and_histogram(size: int, shared: bool) -> None:
    with Daemon("--shared-memory", str(shared).lower()) as daemon, clients.connect(daemon.url) as bus:
        # What is longer than the ring is not kept: it has to be looked at while it comes by.
        bus.declare("tensors", ring_bytes=4096)
        with tap(daemon, "tensors") as tell:
            tell()
            array = np.linspace(-2.0, 2.0, size, dtype=np.float32)
            bus.publish("tensors", array, ack="accepted")
            message = next_seen(tell)
    tensor = message["tensor"]
    assert isinstance(tensor, dict)
    assert (message["kind"], message["text"]) == ("tensor", "")
    assert (tensor["dtype"], tensor["shape"], tensor["elements"]) == ("float32", [size], size)
    assert tensor["low"] == -2.0
    assert tensor["high"] == pytest.approx(2.0, abs=0.01)
    assert sum(tensor["counts"]) == tensor["sampled"] <= 16_384


def large(array: np.ndarray) -> tuple[Message, Stream]:
    """A large message of which nothing has come yet."""
    body = encode_body(MessageBody(tensor=describe(array)))
    stream = Stream()
    flags, size = int(Flag.CHUNKED), array.nbytes + len(body)
    message = Message("a", "b", 1, 1, 2, flags, int(Content.TENSOR), 0, body, b"", size, stream, stream.last)
    return message, stream


def unattached() -> Tap:
    return Tap(spectator(BrokerState(Settings()).own), "a")


def test_a_large_message_is_looked_at_piece_by_piece_and_nothing_of_it_is_kept() -> None:
    array = np.arange(300_000, dtype=np.float32)
    flat, tap = array.tobytes(), unattached()
    message, stream = large(array)
    tap.offer(message)
    message.release()
    for start in range(0, len(flat), 400_000):
        assert tap.take(0) is None
        assert not tap.wants, "it waits for the rest"
        chunk = weakref.ref(payload := Payload(flat[start : start + 400_000]))
        stream.append(payload, complete=start + 400_000 >= len(flat))
        del payload
        stream.last = Chunk(b"") if stream.complete else stream.last
    seen = tap.take(1_000_000_000)
    assert seen is not None
    assert seen.tensor is not None
    assert (seen.tensor.elements, seen.tensor.low, seen.ago_s) == (300_000, 0, 1.0)
    assert chunk() is None
    assert tap.wants


class Payload(bytearray):
    """Bytes of which one can see when they are gone."""


def test_a_large_message_that_is_never_finished_is_forgotten_and_the_next_one_is_looked_at() -> None:
    tap = unattached()
    message, stream = large(np.zeros(300_000))
    tap.offer(message)
    stream.append(bytes(1000), complete=False)
    stream.abort("its publisher is gone")
    assert tap.take(0) is None
    assert tap.wants
    tap.offer(Message("a", "b", 2, 1, 1, 0, int(Content.BYTES), 0, b"", b"words", 5))
    seen = tap.take(0)
    assert seen is not None
    assert (seen.sequence, seen.text) == (2, "words")


def test_when_its_viewer_is_gone_a_large_message_goes_on_without_it() -> None:
    tap = unattached()
    message, stream = large(np.zeros(300_000))
    tap.offer(message)
    tap.end()
    stream.append(bytes(1000), complete=False)
    assert stream.waiters == []
    assert tap.take(0) is None


@pytest.mark.parametrize("body", [b"\xc1", encode_body({"tensor": {"dtype": "object", "shape": [1]}})])
def test_a_message_that_cannot_be_read_says_so(body: bytes) -> None:
    for chunked in (False, True):
        tap, stream = unattached(), Stream() if chunked else None
        first = None if stream is None else stream.last
        tap.offer(Message("a", "b", 1, 1, 1, 0, int(Content.TENSOR), 0, body, b"", 9, stream, first))
        seen = tap.take(0)
        assert seen is not None
        assert seen.text.startswith("a message that cannot be read: ")


def test_of_a_batch_the_last_message_is_told_and_of_a_long_one_its_length() -> None:
    batch = Batch(0, size_max=1 << 20)
    for number in range(3):
        batch.add(int(Content.BYTES), 0, b"", b"number %d" % number)
    payload, tap = batch.close(), unattached()
    tap.offer(Message("a", "b", 10, 3, 1, int(Flag.BATCH), int(Content.BYTES), 0, b"", payload, len(payload)))
    seen = tap.take(0)
    assert seen is not None
    assert (seen.sequence, seen.text) == (12, "number 2")
    tap.offer(Message("a", "b", 13, 9000, 1, int(Flag.BATCH), 0, 0, b"", bytes(200_000), 200_000))
    seen = tap.take(0)
    assert seen is not None
    assert seen.text == "9000 small messages of 200000 bytes"


def test_nobody_is_held_up_by_a_tap_whose_viewer_does_not_read(daemon: Daemon) -> None:
    host, _, port = daemon.admin_url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))) as idle, clients.connect(daemon.url) as bus:
        idle.sendall(b"GET /api/v1/tap?topic=stalled HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(1)
        for _ in range(20_000):
            bus.publish("stalled", bytes(1000))
        bus.publish("stalled", b"", ack="accepted")
        (shown,) = ask_json(daemon, "/api/v1/topics?filter=stalled")["topics"]
    assert (shown["subscriptions"], shown["held_back_publishers"]) == (1, 0)


def test_a_tap_ends_with_its_viewer(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        bus.publish("ended", 1, ack="accepted")
        with tap(daemon, "ended") as tell:
            tell()
            assert readers(daemon, "ended") == 1
        # That it is gone is seen when the next event cannot be sent.
        end_s = time.monotonic() + PATIENCE_S
        while readers(daemon, "ended") and time.monotonic() < end_s:
            bus.flush(PATIENCE_S)
        assert readers(daemon, "ended") == 0


def test_the_number_of_taps_is_bounded() -> None:
    with Daemon() as daemon, ExitStack() as stack:
        for _ in range(TAPS_MAX):
            stack.enter_context(tap(daemon, "bounded"))()
        refused = ask(daemon.admin_url, "/api/v1/tap?topic=bounded")
    assert refused.status == 503
    assert "16 taps are open" in json.loads(refused.body)["error"]


@pytest.mark.parametrize("topic", ["", "a//b", "a/%23", "$inbox/1", "x" * 600, "a%00"])
def test_what_is_no_topic_and_what_belongs_to_a_session_cannot_be_tapped(daemon: Daemon, topic: str) -> None:
    answer = ask(daemon.admin_url, f"/api/v1/tap?topic={topic}")
    assert answer.status == 400
    assert "topic" in json.loads(answer.body)["error"]


def test_the_brokers_own_topics_can_be_tapped(daemon: Daemon) -> None:
    with tap(daemon, "$sys/sessions") as tell:
        tell()
        with clients.connect(daemon.url, name="newcomer"):
            assert "newcomer" in str(next_seen(tell)["text"])


def test_a_broker_that_ends_does_not_wait_for_taps() -> None:
    with Daemon() as daemon, tap(daemon, "a") as tell:
        tell()
        assert daemon.terminate() == 0
