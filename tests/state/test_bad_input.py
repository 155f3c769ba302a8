"""A faulty or hostile client: its own session ends with a clear reason, and nobody else notices."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from broker.errors import ProtocolError
from broker.limits import CHUNK_BYTES, FRAME_BODY_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, MIB, PLACED_BYTES_MIN
from broker.protocol.bodies import Failure, Hello, Join, Subscribe, Topic, Welcome, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import HEADER, HEADER_BYTES, Flag, Frame, Kind, Lane, encode
from broker.protocol.handshake import encode_greeting
from tests.state.harness import Peer, Talk
from tests.thorough import rounds

FROM_BROKER_ONLY = [
    Kind.DELIVER, Kind.DONE, Kind.ERROR, Kind.JOINED, Kind.RESULT, Kind.FAILED, Kind.CHANGED,
]  # fmt: skip


def expect_closed(peer: Peer, code: Code, words: str) -> None:
    """The client has been told why, and its session is gone."""
    assert peer.session.failure is not None, f"{peer.record} is still open"
    assert peer.session.failure.code == code
    assert words in str(peer.session.failure)
    assert peer.record.id not in peer.talk.state.sessions


@pytest.fixture
def talk() -> Talk:
    """A broker with a publisher and a reader that must go on, whatever a third client does."""
    talk = Talk()
    talk.peer("publisher")
    talk.peer("reader").subscribe("a")
    return talk


def check_goes_on(talk: Talk) -> None:
    publisher, reader = talk.peers[:2]
    before = len(reader.delivered())
    publisher.publish("a", b"still here")
    assert reader.payloads()[before:] == [b"still here"]
    assert publisher.is_open
    assert reader.is_open


@pytest.mark.parametrize("kind", FROM_BROKER_ONLY)
def test_frames_of_the_wrong_direction_close_the_session(talk: Talk, kind: Kind) -> None:
    bad = talk.peer()
    bad.put(kind)
    expect_closed(bad, Code.PROTOCOL, f"{kind.name} frame from a client")
    check_goes_on(talk)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (Frame(Kind.PUBLISH, number=5), "topic number 5"),
        (Frame(Kind.CHUNK, stream=6, payload=b"x"), "stream 6"),
        (Frame(Kind.STREAM_ABORT, stream=7), "stream 7"),
        (Frame(Kind.CONTRIBUTE, number=8), "group number 8"),
        (Frame(Kind.LEAVE, number=9), "group number 9"),
        (Frame(Kind.GIVE_UP, number=10), "group number 10"),
        (Frame(Kind.FINISHED, number=11), "group number 11"),
    ],
)
def test_numbers_that_were_never_given_close_the_session(talk: Talk, frame: Frame, words: str) -> None:
    bad = talk.peer()
    bad.session.put(frame)
    talk.settle()
    expect_closed(bad, Code.PROTOCOL, words)
    check_goes_on(talk)


@pytest.mark.parametrize("number", [-1, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_a_version_of_lines_may_be_any_number(talk: Talk, number: int) -> None:
    assert talk.peer(hello=Hello("new", process=number, lines=number)).is_open
    check_goes_on(talk)


@pytest.mark.parametrize("kind", [Kind.TOPIC, Kind.SUBSCRIBE, Kind.JOIN, Kind.QUERY, Kind.DROPPED])
@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x80", b"\x90", b"\x81\xa4name\x01", b"\xa3abc", b"\xdf\xff\xff\xff\xff"]
)
def test_malformed_bodies_close_the_session(talk: Talk, kind: Kind, body: bytes) -> None:
    bad = talk.peer()
    bad.put(kind, body=body)
    expect_closed(bad, Code.PROTOCOL, "malformed")
    check_goes_on(talk)


def test_a_malformed_abort_closes_the_session_and_aborts_the_message(talk: Talk) -> None:
    bad = talk.peer()
    stream = bad.open_stream("a", 10 * CHUNK_BYTES)
    bad.put(Kind.STREAM_ABORT, stream=stream, body=b"\xc1")
    expect_closed(bad, Code.PROTOCOL, "malformed")
    assert talk.peers[1].failures(Kind.STREAM_ABORT)[0].code == Code.PUBLISHER_GONE
    check_goes_on(talk)


@pytest.mark.parametrize(
    ("sizes", "last", "words"),
    [
        ([CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES], False, "announced"),
        ([CHUNK_BYTES], True, "announced"),
        ([CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES], False, "announced"),
    ],
    ids=["too long", "too short", "not marked as the last"],
)
def test_a_large_message_of_another_length_than_announced_closes_the_session(
    talk: Talk, sizes: list[int], last: bool, words: str
) -> None:
    bad = talk.peer()
    stream = bad.open_stream("a", 3 * CHUNK_BYTES)
    for number, size in enumerate(sizes, start=1):
        bad.chunk(stream, bytes(size), last=last and number == len(sizes))
    expect_closed(bad, Code.PROTOCOL, words)
    assert len(talk.peers[1].all_of(Kind.STREAM_ABORT)) == 1
    check_goes_on(talk)


def test_two_large_messages_at_once_on_a_topic_close_the_session(talk: Talk) -> None:
    bad = talk.peer()
    for _ in range(2):
        bad.open_stream("a", 2 * CHUNK_BYTES)
    expect_closed(bad, Code.PROTOCOL, "second large message")
    check_goes_on(talk)


def test_a_stream_number_in_use_closes_the_session(talk: Talk) -> None:
    bad = talk.peer()
    for topic in ("a", "b"):
        bad.put(Kind.PUBLISH, Flag.CHUNKED, number=bad.topic(topic), stream=3, total_bytes=2 * CHUNK_BYTES)
    expect_closed(bad, Code.PROTOCOL, "stream 3 is in use")
    check_goes_on(talk)


def test_a_large_message_with_a_payload_in_its_first_frame_closes_the_session(talk: Talk) -> None:
    bad = talk.peer()
    bad.publish("a", b"payload", Flag.CHUNKED, stream=1, total_bytes=7)
    expect_closed(bad, Code.PROTOCOL, "has a payload")
    check_goes_on(talk)


def test_an_impossible_total_costs_nothing(talk: Talk) -> None:
    bad = talk.peer()
    bad.open_stream("b", (1 << 64) - 1)
    assert talk.state.largest_allocation_bytes == 0
    bad.die()
    check_goes_on(talk)


@pytest.mark.parametrize(("count", "payload"), [(0, bytes(32)), (3, bytes(32)), (2, b""), (0xFFFFFFFF, bytes(32))])
def test_a_batch_of_an_impossible_count_closes_the_session(talk: Talk, count: int, payload: bytes) -> None:
    bad = talk.peer()
    bad.publish("a", payload, Flag.BATCH, count=count)
    expect_closed(bad, Code.PROTOCOL, f"batch of {count} messages")
    check_goes_on(talk)


LYING_BATCH = struct.pack("<BBHIQ", 0, 0, 0, 0xFFFFFFF, 0) + bytes(16)


def test_a_batch_that_lies_closes_its_publisher_when_it_has_to_be_opened(talk: Talk) -> None:
    bad, member = talk.peer(), talk.peer()
    member.subscribe("b", queue_group="g")
    bad.publish("b", LYING_BATCH, Flag.BATCH, count=2)
    expect_closed(bad, Code.PROTOCOL, "batch of 2 messages")
    assert member.is_open
    check_goes_on(talk)


@pytest.mark.parametrize(
    "wishes",
    [
        {"replay": "latest"}, {"replay": 2}, {"replay": "all", "overflow": "latest"},
        {"replay": "all", "overflow": "drop_newest", "queue_messages": 1},
    ],
)  # fmt: skip
def test_a_retained_batch_that_lies_does_not_close_those_who_ask_for_it(talk: Talk, wishes: dict[str, object]) -> None:
    bad, late = talk.peer(), talk.peer()
    bad.publish("b", LYING_BATCH, Flag.BATCH, count=2)
    late.subscribe("b", **wishes)
    bad.publish("b", b"good")
    assert late.is_open
    assert bad.is_open
    check_goes_on(talk)


def test_a_batch_that_lies_and_waits_is_dropped_whole_and_its_successor_flows(talk: Talk) -> None:
    bad, slow = talk.peer(), talk.peer()
    number = slow.subscribe("b", "drop_oldest", queue_messages=2)
    slow.reading = False
    bad.publish("b", LYING_BATCH, Flag.BATCH, count=2)
    talk.peers[0].publish("b", b"good")
    slow.reading = True
    talk.settle()
    assert slow.payloads() == [b"good"]
    assert slow.dropped(number) == 2
    assert talk.peers[0].is_open


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (HEADER.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "unknown kind 0"),
        (HEADER.pack(200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "unknown kind 200"),
        (HEADER.pack(Kind.FLUSH, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "unknown lane 3"),
        (HEADER.pack(Kind.TOPIC, 0, 0, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0, 0, 0, 0), "frame body of 4294967295"),
        (HEADER.pack(Kind.PUBLISH, 0, 0, 0, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0, 0, 0), "frame payload of 4294967295"),
    ],
)
def test_impossible_headers_close_the_session_before_anything_is_reserved(
    talk: Talk, header: bytes, words: str
) -> None:
    bad = talk.peer()
    bad.inject(header)
    expect_closed(bad, Code.PROTOCOL, words)
    assert talk.state.largest_allocation_bytes == 0
    check_goes_on(talk)


def test_a_broken_session_takes_whatever_still_comes_and_answers_nothing_more(talk: Talk) -> None:
    bad = talk.peer()
    bad.reading = False
    bad.inject(bytes(HEADER_BYTES))
    for _ in range(3):
        bad.inject(bytes(200_000))
    bad.inject(b"".join(bytes(b) for b in _encoded(Frame(Kind.PING))))
    bad.reading = True
    talk.settle()
    assert bad.all_of(Kind.PONG) == []
    expect_closed(bad, Code.PROTOCOL, "unknown kind 0")


def test_a_welcome_from_a_client_is_no_hello(talk: Talk) -> None:
    record = talk.state.connect("test", talk.now_ns)
    stranger = Peer.__new__(Peer)
    stranger.talk, stranger.record = talk, record
    stranger.inject(encode_greeting(Welcome(1, "b", 1, 1, 1, 1, 1)))
    assert isinstance(record.session.failure, ProtocolError)
    assert "Welcome from the wrong side" in str(record.session.failure)
    check_goes_on(talk)


def _encoded(frame: Frame) -> list[bytes]:
    buffers: list[bytes] = []
    encode(frame, buffers)
    return buffers


def conversation() -> bytes:
    """What a lively client sends: every kind of frame that it may."""
    frames = [
        Frame(Kind.TOPIC, number=1, body=encode_body(Topic("a"))),
        Frame(Kind.TOPIC, number=2, body=encode_body(Topic("fuzz/b"))),
        Frame(Kind.SUBSCRIBE, number=1, target=1, body=encode_body(Subscribe("fuzz/#", "latest", replay="all"))),
        Frame(Kind.SUBSCRIBE, number=2, target=2, body=encode_body(Subscribe("fuzz/b", "drop_oldest", 2, 1 << 16))),
        Frame(Kind.SUBSCRIBE, number=3, target=2, body=encode_body(Subscribe("fuzz/+", queue_group="g", replay=1))),
        Frame(Kind.PUBLISH, Flag.ACKNOWLEDGE, number=2, target=3, payload=b"small"),
        Frame(Kind.PUBLISH, Flag.BATCH, number=2, count=2, payload=bytes(32)),
        Frame(Kind.PUBLISH, Flag.REQUEST, Lane.CONTROL, number=2, payload=b"?"),
        Frame(Kind.PUBLISH, Flag.CHUNKED, Lane.BULK, number=2, stream=1, total_bytes=40_000),
        Frame(Kind.CHUNK, lane=Lane.BULK, stream=1, payload=bytes(20_000)),
        Frame(Kind.CHUNK, Flag.LAST, Lane.BULK, stream=1, payload=bytes(20_000)),
        Frame(Kind.PUBLISH, Flag.CHUNKED, number=2, stream=2, total_bytes=40_000),
        Frame(Kind.STREAM_ABORT, stream=2, body=encode_body(Failure(12, "no"))),
        Frame(Kind.CREDIT, lane=Lane.CONTROL, number=1, count=1, total_bytes=9),
        Frame(Kind.JOIN, target=4, body=encode_body(Join("dp", 1))),
        Frame(Kind.CONTRIBUTE, Flag.LAST, number=1, target=1, sequence=1, body=b"\x80"),
        Frame(Kind.LEAVE, number=1, target=5),
        Frame(Kind.UNSUBSCRIBE, number=1, target=6),
        Frame(Kind.PING, sequence=1),
        Frame(Kind.FLUSH, target=7),
        Frame(Kind.CLOSE, body=encode_body(Failure(1, "bye"))),
    ]
    return b"".join(b"".join(bytes(part) for part in _encoded(frame)) for frame in frames)


CONVERSATION = conversation()
GREETING = encode_greeting(Hello("fuzz"))


def check_survives(data: bytes) -> None:
    """Feeds a session with these bytes in random pieces, and looks after the others."""
    talk = Talk()
    talk.peer("publisher")
    talk.peer("reader").subscribe("a", queue_messages=100_000)
    bad = talk.peer()
    pieces = random.Random(len(data))
    start = 0
    while start < len(data):
        end = start + pieces.choice((1, 7, 60, 1000, 50_000))
        bad.inject(data[start:end])
        start = end
    talk.tick(0.2)
    assert talk.state.largest_allocation_bytes <= FRAME_PAYLOAD_BYTES_MAX
    assert talk.state.held_bytes() <= 8 * MIB
    assert len(bad.record.session._rest) <= HEADER_BYTES + FRAME_BODY_BYTES_MAX + PLACED_BYTES_MIN
    check_goes_on(talk)


@hypothesis_settings(max_examples=rounds(60))
@given(st.binary(max_size=2000))
def test_random_bytes_end_a_session_at_most(data: bytes) -> None:
    check_survives(data)


@hypothesis_settings(max_examples=rounds(60))
@given(st.integers(0, len(CONVERSATION)))
def test_a_conversation_that_breaks_off_anywhere_harms_nobody(length: int) -> None:
    check_survives(CONVERSATION[:length])


@hypothesis_settings(max_examples=rounds(150))
@given(st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 7)), min_size=1, max_size=6))
def test_flipped_bits_harm_nobody(flips: list[tuple[int, int]]) -> None:
    data = bytearray(CONVERSATION)
    for position, bit in flips:
        data[position] ^= 1 << bit
    check_survives(bytes(data))


@hypothesis_settings(max_examples=rounds(100))
@given(st.integers(0, 20), st.sampled_from([20, 24, 28, 8, 12, 4, 16]), st.integers(0, 0xFFFFFFFF))
def test_lying_numbers_and_lengths_harm_nobody(which: int, offset: int, value: int) -> None:
    data = bytearray(CONVERSATION)
    start = 0
    for _ in range(which):
        body_bytes, payload_bytes = struct.unpack_from("<2I", data, start + 20)
        start += HEADER_BYTES + body_bytes + payload_bytes
    struct.pack_into("<I", data, start + offset, value)
    check_survives(bytes(data))


frames_of_any_kind = st.builds(
    Frame,
    kind=st.sampled_from(Kind),
    flags=st.integers(0, 255),
    lane=st.sampled_from(Lane),
    content=st.integers(0, 255),
    number=st.integers(0, 3),
    target=st.integers(0, 3),
    stream=st.integers(0, 2),
    count=st.integers(0, 3),
    total_bytes=st.sampled_from([0, 1, 20_000, 40_000, (1 << 64) - 1]),
    sequence=st.sampled_from([0, 1, 2, (1 << 64) - 1]),
    body=st.sampled_from(
        [
            b"", encode_body(Topic("fuzz/b")), encode_body(Subscribe("fuzz/#", "drop_oldest", 1, 1 << 16)),
            encode_body(Subscribe("#", "latest", queue_group="g", replay="all", responder=True)),
            encode_body(Join("dp", 1)), encode_body(Failure(12, "no")), b"\xc1",
        ]
    ),
    payload=st.sampled_from([b"", bytes(16), bytes(48), bytes(20_000)]),
)  # fmt: skip


@hypothesis_settings(max_examples=rounds(150))
@given(st.lists(frames_of_any_kind, max_size=25))
def test_well_formed_frames_in_any_order_harm_nobody(frames: list[Frame]) -> None:
    check_survives(b"".join(b"".join(bytes(part) for part in _encoded(frame)) for frame in frames))


@hypothesis_settings(max_examples=rounds(80))
@given(st.binary(max_size=200))
def test_any_first_bytes_of_a_stranger_end_its_session_at_most(data: bytes) -> None:
    talk = Talk()
    talk.peer("publisher")
    talk.peer("reader").subscribe("a")
    stranger = Peer.__new__(Peer)
    stranger.talk, stranger.record = talk, talk.state.connect("stranger", talk.now_ns)
    stranger.inject(data)
    stranger.inject(data)
    assert talk.state.largest_allocation_bytes == 0
    check_goes_on(talk)


@hypothesis_settings(max_examples=rounds(80))
@given(st.integers(0, len(GREETING) - 1), st.integers(1, 255))
def test_a_damaged_hello_opens_no_session_or_a_harmless_one(position: int, change: int) -> None:
    talk = Talk()
    talk.peer("publisher")
    talk.peer("reader").subscribe("a")
    data = bytearray(GREETING)
    data[position] ^= change
    stranger = Peer.__new__(Peer)
    stranger.talk, stranger.record = talk, talk.state.connect("stranger", talk.now_ns)
    stranger.inject(bytes(data) + CONVERSATION)
    check_goes_on(talk)
