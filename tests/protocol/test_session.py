"""One conversation: hello, heartbeats, and the bytes that come in."""

from __future__ import annotations

import pytest

from broker.errors import ConnectionClosed, ProtocolError
from broker.limits import (
    FRAME_BODY_BYTES_MAX,
    HELLO_BODY_BYTES_MAX,
    HELLO_TIMEOUT_S,
    PLACED_BYTES_MIN,
    SCRATCH_BYTES,
)
from broker.protocol.bodies import Hello, Refusal, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import HEADER_BYTES, Flag, Frame, Kind, encode
from broker.protocol.handshake import MAGIC, PREAMBLE, encode_greeting
from broker.protocol.session import Phase, make_scratch
from tests.protocol.helpers import SECOND_NS, WELCOME, allocate, opened, pair, read, sent_by, session


def wire(*frames: Frame) -> bytes:
    buffers: list[bytes] = []
    for frame in frames:
        encode(frame, buffers)
    return b"".join(bytes(buffer) for buffer in buffers)


# Hello.


def test_a_hello_and_a_welcome_open_both_ends() -> None:
    client, broker = session("trainer"), session()
    assert client.phase is broker.phase is Phase.AWAIT_HELLO
    assert read(broker, sent_by(client)) == [Hello("trainer")]
    assert broker.phase is Phase.OPEN
    broker.welcome(WELCOME)
    assert read(client, sent_by(broker)) == [WELCOME]
    assert client.phase is Phase.OPEN


def test_a_hello_may_come_byte_by_byte_and_with_frames_behind_it() -> None:
    data = sent_by(session("trainer")) + wire(Frame(Kind.FLUSH, target=1), Frame(Kind.FLUSH, target=2))
    for size in (1, 3, 1000):
        found = read(session(), data, size_max=size)
        assert found == [Hello("trainer"), Frame(Kind.FLUSH, target=1), Frame(Kind.FLUSH, target=2)]


def test_a_hello_of_the_longest_body_is_taken() -> None:
    data = encode_greeting(Hello("x", token="t" * (HELLO_BODY_BYTES_MAX - 40)))
    assert len(data) > SCRATCH_BYTES - 40
    broker = session()
    assert len(read(broker, data, size_max=1000)) == 1
    assert broker.phase is Phase.OPEN


def test_another_version_is_refused_naming_both_ranges() -> None:
    client, broker = session(), session()
    broker = session()
    assert read(broker, encode_greeting(Hello("new"), 7, 9)) == []
    assert broker.phase is Phase.CLOSING
    answer = sent_by(broker)
    assert broker.phase is Phase.CLOSED
    client = session("c")
    sent_by(client)
    assert read(client, answer) == []
    assert client.phase is Phase.CLOSED
    assert client.failure.code == Code.VERSION
    for words in ("7 to 9", "1 to 1"):
        assert words in str(client.failure)
        assert words in str(broker.failure)


def test_a_client_of_a_newer_broker_names_both_ranges() -> None:
    client = session("c")
    sent_by(client)
    read(client, encode_greeting(WELCOME, 5, 5))
    assert client.failure.code == Code.VERSION
    assert "5 to 5" in str(client.failure)
    assert sent_by(client) == b""
    assert client.phase is Phase.CLOSED


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
def test_a_web_browser_gets_an_answer_that_it_can_show(method: str) -> None:
    broker = session()
    read(broker, f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = sent_by(broker).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"tensorbus" in body
    assert broker.phase is Phase.CLOSED
    assert broker.failure.code == Code.NOT_OURS


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"SSH-2.0-OpenSSH\r\n",
        b"\x00" * 100,
        MAGIC[:4] + b"junk",
        b"\x0c" + bytes(60),
        b"x",
    ],
    ids=["TLS", "SSH", "zeros", "damaged magic", "a frame without a hello", "one byte"],
)
def test_a_stranger_gets_one_line_of_text_and_nothing_else(data: bytes) -> None:
    broker = session()
    assert read(broker, data) == []
    answer = sent_by(broker)
    assert answer.startswith(b"This is a tensorbus broker.")
    assert answer.endswith(b"\r\n")
    assert answer.count(b"\n") == 1
    assert (broker.failure.code, broker.phase) == (Code.NOT_OURS, Phase.CLOSED)


def test_a_client_that_finds_no_broker_says_what_it_found() -> None:
    client = session("c")
    sent_by(client)
    read(client, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert "HTTP/1.1" in str(client.failure)
    assert client.failure.code == Code.NOT_OURS


def test_a_hello_over_the_limit_is_refused_before_it_has_come() -> None:
    broker = session()
    read(broker, PREAMBLE.pack(MAGIC, 1, 1, HELLO_BODY_BYTES_MAX + 1))
    assert broker.phase is Phase.CLOSING
    assert broker.failure.code == Code.LIMIT
    assert str(HELLO_BODY_BYTES_MAX) in str(broker.failure)
    assert broker._rest == b""


@pytest.mark.parametrize("body", [b"\xc1", b"\x80", b"\x81\xa4type\xa5hello", encode_body(Refusal(1, "x"))])
def test_a_malformed_hello_is_refused(body: bytes) -> None:
    broker = session()
    read(broker, PREAMBLE.pack(MAGIC, 1, 1, len(body)) + body)
    assert isinstance(broker.failure, ProtocolError)
    assert broker.phase is Phase.CLOSING


def test_a_refusal_is_the_clients_failure() -> None:
    client, broker = session("c"), session()
    read(broker, sent_by(client))
    broker.refuse(Code.DENIED, "wrong token")
    read(client, sent_by(broker))
    assert client.phase is broker.phase is Phase.CLOSED
    assert isinstance(client.failure, ConnectionClosed)
    assert (client.failure.code, client.failure.reason) == (Code.DENIED, "wrong token")


def test_no_hello_in_time_ends_the_session_however_slowly_it_trickles() -> None:
    broker = session(now_ns=5 * SECOND_NS)
    timeout_ns = int(HELLO_TIMEOUT_S * SECOND_NS)
    read(broker, MAGIC[:3], now_ns=5 * SECOND_NS + timeout_ns // 2)
    broker.tick(5 * SECOND_NS + timeout_ns)
    assert broker.phase is Phase.AWAIT_HELLO
    read(broker, MAGIC[3:6], now_ns=5 * SECOND_NS + timeout_ns)
    broker.tick(5 * SECOND_NS + timeout_ns + 1)
    assert b"This is a tensorbus broker" in sent_by(broker)
    assert broker.phase is Phase.CLOSED
    assert "hello within 3 s" in str(broker.failure)


# Heartbeats.


def test_a_quiet_peer_is_pinged_once_per_interval_and_its_answer_counts() -> None:
    client, broker = pair()
    for seconds in (1, 4, 5):
        client.tick(seconds * SECOND_NS)
    assert not client.has_unsent()
    client.tick(5 * SECOND_NS + 1)
    client.tick(6 * SECOND_NS)
    ping = sent_by(client)
    assert len(ping) == HEADER_BYTES
    assert read(broker, ping, now_ns=6 * SECOND_NS) == []
    assert read(client, sent_by(broker), now_ns=7 * SECOND_NS) == []
    client.tick(12 * SECOND_NS)
    assert not client.has_unsent()
    client.tick(12 * SECOND_NS + 1)
    assert client.has_unsent()


def test_a_silent_peer_is_gone_at_the_time_out() -> None:
    client, broker = pair()
    broker.tick(30 * SECOND_NS)
    assert broker.phase is Phase.OPEN
    broker.tick(30 * SECOND_NS + 1)
    assert broker.phase is Phase.CLOSING
    assert broker.failure.code == Code.HEARTBEAT
    assert "30 s" in str(broker.failure)
    read(client, sent_by(broker))
    assert client.failure.code == Code.HEARTBEAT


def test_any_byte_is_a_sign_of_life() -> None:
    _, broker = pair()
    read(broker, bytes([Kind.FLUSH]), now_ns=29 * SECOND_NS)
    broker.tick(58 * SECOND_NS)
    assert broker.phase is Phase.OPEN


def test_the_welcome_may_change_the_heartbeat() -> None:
    client, _ = pair()
    client.set_heartbeat(0.5, 2.0)
    client.tick(SECOND_NS)
    assert client.has_unsent()
    client.tick(2 * SECOND_NS + 1)
    assert client.failure.code == Code.HEARTBEAT


# Bytes in.


def test_a_long_payload_is_received_into_its_final_memory() -> None:
    given_out: list[memoryview] = []

    def remember(frame: Frame, size_bytes: int) -> memoryview:
        assert frame.body == b"\x80"
        given_out.append(memoryview(bytearray(size_bytes)))
        return given_out[-1]

    broker = opened(allocate=remember)
    payload = bytes(range(256)) * 1024
    (frame,) = read(broker, wire(Frame(Kind.PUBLISH, number=1, body=b"\x80", payload=payload)))
    assert frame.payload is given_out[0]
    assert frame.payload == payload


def test_behind_a_chunk_little_is_read_ahead_that_would_have_to_be_copied_also_behind_the_last_one() -> None:
    broker = opened()
    whole = sum(map(len, broker.receive_buffers()))
    assert whole == SCRATCH_BYTES
    chunk = Frame(Kind.CHUNK, stream=1, payload=bytes(PLACED_BYTES_MIN))
    header = wire(chunk)[: -len(chunk.payload)]
    read(broker, header)
    read(broker, chunk.payload)
    assert sum(map(len, broker.receive_buffers())) < PLACED_BYTES_MIN
    (found,) = read(broker, wire(Frame(Kind.FLUSH, target=7)))
    assert found.target == 7
    assert sum(map(len, broker.receive_buffers())) == whole
    read(
        broker,
        wire(Frame(Kind.CHUNK, Flag.LAST, stream=1, sequence=PLACED_BYTES_MIN, payload=chunk.payload)),
        size_max=256,
    )
    # Large messages follow each other, and the beginning of the next one is short.
    assert sum(map(len, broker.receive_buffers())) < PLACED_BYTES_MIN
    read(broker, wire(Frame(Kind.FLUSH, target=8)))
    assert sum(map(len, broker.receive_buffers())) == whole


def test_a_client_takes_in_nothing_behind_the_end_of_a_large_message_with_it() -> None:
    client, _ = pair()
    payload = bytes(PLACED_BYTES_MIN)
    data = wire(Frame(Kind.CHUNK, stream=1, payload=payload), Frame(Kind.CHUNK, Flag.LAST, stream=1, payload=payload))
    header_bytes = (len(data) - 2 * len(payload)) // 2
    read(client, data[:header_bytes])
    assert sum(map(len, client.receive_buffers())) > len(payload)
    read(client, data[header_bytes : -len(payload)])
    assert [len(buffer) for buffer in client.receive_buffers()] == [len(payload)]
    (last,) = read(client, payload)
    assert last.flags == Flag.LAST
    assert 0 < sum(map(len, client.receive_buffers())) < PLACED_BYTES_MIN
    read(client, wire(Frame(Kind.DROPPED)))
    assert sum(map(len, client.receive_buffers())) == SCRATCH_BYTES


def test_a_chunk_may_stay_in_memory_in_which_all_of_it_has_come() -> None:
    lent: list[memoryview | None] = []

    def lend(size_bytes: int) -> memoryview | None:
        lent.append(memoryview(b"x" * size_bytes) if len(lent) else None)
        return lent[-1]

    broker = opened()
    broker.lend = lend
    payload = b"y" * PLACED_BYTES_MIN
    header = wire(Frame(Kind.CHUNK, stream=1, payload=payload))[: -len(payload)]
    # Nobody is asked about what is no chunk, or of which something has been copied already.
    read(broker, wire(Frame(Kind.PUBLISH, payload=payload)))
    read(broker, header + payload)
    assert lent == []
    read(broker, header)
    (chunk,) = read(broker, payload)
    assert lent == [None]
    assert chunk.payload == payload
    read(broker, header)
    (rest, *_) = broker.receive_buffers()
    assert rest.obj is lent[1].obj
    found: list[Frame] = []
    broker.received(len(payload), 0, lambda received, _: found.append(received))
    assert found[0].payload is lent[1]


@pytest.mark.parametrize(("size", "placed"), [(PLACED_BYTES_MIN - 1, False), (PLACED_BYTES_MIN, True)])
def test_a_short_payload_is_copied_and_costs_no_allocation(size: int, *, placed: bool) -> None:
    asked: list[int] = []

    def count(frame: Frame, size_bytes: int) -> memoryview:
        asked.append(size_bytes)
        return allocate(frame, size_bytes)

    (frame,) = read(opened(allocate=count), wire(Frame(Kind.PUBLISH, payload=bytes(size))))
    assert len(frame.payload) == size
    assert asked == ([size] if placed else [])


def test_memory_for_a_payload_is_asked_for_after_the_frames_before_it_were_handed_out() -> None:
    events: list[object] = []

    def remember(frame: Frame, size_bytes: int) -> memoryview:
        events.append(size_bytes)
        return allocate(frame, size_bytes)

    broker = opened(allocate=remember)
    data = wire(Frame(Kind.FLUSH, target=1), Frame(Kind.PUBLISH, payload=bytes(20_000)), Frame(Kind.FLUSH, target=2))
    buffer = broker.receive_buffers()[0]
    buffer[: len(data)] = data
    broker.received(len(data), 0, lambda received, _: events.append(received.target))
    assert events == [1, 20_000, 0, 2]


def sample() -> tuple[list[Frame], bytes]:
    frames = [
        Frame(Kind.FLUSH, target=1),
        Frame(Kind.PUBLISH, number=1, payload=bytes(range(100))),
        Frame(Kind.CHUNK, stream=1, payload=bytes(range(256)) * 80),
        Frame(Kind.TOPIC, number=1, body=b"\x81\xa4name\xa1a"),
        Frame(Kind.CHUNK, stream=2, body=b"\x80", payload=b"z" * PLACED_BYTES_MIN),
        Frame(Kind.CREDIT, number=3),
    ]
    return frames, wire(*frames)


def test_any_cut_in_two_gives_the_same_frames() -> None:
    frames, data = sample()
    for cut in [*range(400), *range(20_000, 21_200), *range(len(data) - 100, len(data))]:
        broker = opened()
        assert read(broker, data[:cut]) + read(broker, data[cut:]) == frames, cut


@pytest.mark.parametrize("size", [1, 7, 52, 53, 4096, 65_536])
def test_any_size_of_the_pieces_gives_the_same_frames(size: int) -> None:
    frames, data = sample()
    assert read(opened(), data * 3, size_max=size) == frames * 3


def test_between_two_reads_a_session_keeps_only_an_incomplete_frame() -> None:
    broker = opened()
    data = wire(*[Frame(Kind.FLUSH, target=number, body=b"x" * (number % 90)) for number in range(3000)])
    kept = 0
    for start in range(0, len(data), 1001):
        read(broker, data[start : start + 1001])
        kept = max(kept, len(broker._rest))
    assert 0 < kept < HEADER_BYTES + 90
    assert broker._rest == b""


def test_sessions_that_share_a_scratch_may_each_be_in_the_middle_of_a_frame() -> None:
    frames, data = sample()
    scratch = make_scratch()
    brokers = [opened(scratch=scratch) for _ in range(3)]
    found: list[list[object]] = [[] for _ in brokers]
    for start in range(0, len(data), 700):
        for broker, its in zip(brokers, found, strict=True):
            its += read(broker, data[start : start + 700])
    assert found == [frames] * 3


@pytest.mark.parametrize("size", [30_000, 65_536, 1 << 20])
def test_the_longest_frame_that_is_not_placed_is_taken(size: int) -> None:
    frame = Frame(Kind.TOPIC, body=bytes(FRAME_BODY_BYTES_MAX), payload=b"x" * (PLACED_BYTES_MIN - 1))
    assert read(opened(), wire(frame, frame), size_max=size) == [frame, frame]


def test_an_error_in_deliver_ends_the_session_and_nothing_more_is_delivered() -> None:
    broker = opened()
    seen: list[int] = []

    def refuse(received: Frame, now_ns: int) -> None:
        seen.append(received.target)
        if received.target == 2:
            raise ProtocolError("no twos", Code.INVALID)

    data = wire(*[Frame(Kind.FLUSH, target=number) for number in (1, 2, 3)])
    broker.receive_buffers()[0][: len(data)] = data
    broker.received(len(data), 0, refuse)
    assert seen == [1, 2]
    assert (broker.phase, broker.failure.code) == (Phase.CLOSING, Code.INVALID)


@pytest.mark.parametrize("damage", [bytes(HEADER_BYTES), b"\xff" * 200_000])
def test_a_failed_session_has_room_for_whatever_still_comes(damage: bytes) -> None:
    broker = opened()
    assert read(broker, damage) == []
    for _ in range(3):
        assert read(broker, bytes(100_000)) == []
    assert broker.phase is Phase.CLOSING


def test_a_session_that_closes_in_order_and_is_then_sent_garbage_has_room_too() -> None:
    broker = opened()
    broker.close(Code.SHUTDOWN, "bye")
    for _ in range(3):
        assert read(broker, bytes(100_000)) == []
    assert sent_by(broker)
    assert broker.phase is Phase.CLOSED


def test_frames_after_the_peers_close_are_not_delivered() -> None:
    client, broker = pair()
    client.close(Code.NORMAL, "done")
    assert read(broker, sent_by(client) + wire(Frame(Kind.FLUSH))) == []
    assert broker.phase is Phase.CLOSED
