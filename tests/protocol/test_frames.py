"""Frames against literal bytes, both ways, and the headers that are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from broker.limits import FRAME_BODY_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, MESSAGE_BYTES_MAX
from broker.protocol.frames import (
    HEADER,
    HEADER_BYTES,
    Content,
    Flag,
    Frame,
    Kind,
    Lane,
    check_header,
    encode,
    kind_name,
)
from tests.protocol.helpers import opened, read

LITERALS = [
    (
        Frame(Kind.PING, lane=Lane.CONTROL, sequence=7, time_ns=258),
        "0c 00 00 00  00000000 00000000 00000000 00000000 00000000 00000000"
        "0000000000000000 0700000000000000 0201000000000000",
    ),
    (
        Frame(Kind.TOPIC, number=1, body=b"\x81\xa4name\xa1a"),
        "01 00 01 00  01000000 00000000 00000000 00000000 08000000 00000000"
        "0000000000000000 0000000000000000 0000000000000000 81a46e616d65a161",
    ),
    (
        Frame(
            Kind.PUBLISH,
            Flag.ACKNOWLEDGE | Flag.REQUEST,
            Lane.BULK,
            Content.BYTES,
            number=0x01020304,
            target=0x05060708,
            stream=0x090A0B0C,
            count=0x0D0E0F10,
            total_bytes=0x1112131415161718,
            sequence=0x191A1B1C1D1E1F20,
            time_ns=0x2122232425262728,
            body=b"\x80",
            payload=b"hi!",
        ),
        "02 03 02 01  04030201 08070605 0c0b0a09 100f0e0d 01000000 03000000"
        "1817161514131211 201f1e1d1c1b1a19 2827262524232221 80 686921",
    ),
    (
        Frame(Kind.CREDIT, Flag.TOPIC_CREDIT, Lane.CONTROL, number=2, count=512, total_bytes=1 << 20),
        "08 20 00 00  02000000 00000000 00000000 00020000 00000000 00000000"
        "0000100000000000 0000000000000000 0000000000000000",
    ),
    (
        Frame(Kind.CHUNK, Flag.LAST, stream=9, sequence=262144, payload=b"\x00\xff"),
        "04 10 01 00  00000000 00000000 09000000 00000000 00000000 02000000"
        "0000000000000000 0000040000000000 0000000000000000 00ff",
    ),
]


@pytest.mark.parametrize(("frame", "literal"), LITERALS, ids=[Kind(frame.kind).name for frame, _ in LITERALS])
def test_a_frame_is_these_bytes(frame: Frame, literal: str) -> None:
    buffers: list[bytes] = []
    size = encode(frame, buffers)
    assert b"".join(bytes(buffer) for buffer in buffers).hex() == literal.replace(" ", "")
    assert size == sum(map(len, buffers))


@pytest.mark.parametrize(("frame", "literal"), LITERALS, ids=[Kind(frame.kind).name for frame, _ in LITERALS])
def test_these_bytes_are_the_frame(frame: Frame, literal: str) -> None:
    session = opened()
    found = read(session, bytes.fromhex(literal))
    if frame.kind == Kind.PING:
        pong = b"".join(bytes(buffer) for buffer in session.to_send())
        assert pong.hex() == "0d" + literal.replace(" ", "")[2:]
        assert found == []
    else:
        assert found == [frame]


def test_the_header_has_52_bytes_and_the_numbers_of_the_wire_are_fixed() -> None:
    assert HEADER_BYTES == 52
    assert {kind.name: int(kind) for kind in Kind} == {
        "TOPIC": 1, "PUBLISH": 2, "DELIVER": 3, "CHUNK": 4, "STREAM_ABORT": 5, "SUBSCRIBE": 6, "UNSUBSCRIBE": 7,
        "CREDIT": 8, "DONE": 9, "ERROR": 10, "FLUSH": 11, "PING": 12, "PONG": 13, "CLOSE": 14, "DROPPED": 15,
        "JOIN": 16, "JOINED": 17, "LEAVE": 18, "CONTRIBUTE": 19, "RESULT": 20, "FAILED": 21, "CHANGED": 22,
        "RESUME": 23, "GAP": 24, "DECLARE": 25, "POLICY": 26, "SETTLE": 27, "CANCEL": 28, "QUERY": 29,
        "ARENA": 30, "MAPPED": 31, "RELEASE": 32, "BOARD": 33, "LINKS": 34, "COMMITTED": 35,
        "GIVE_UP": 37, "TOOK_PART": 38, "REGROUP": 39, "LINE": 40, "DRAIN": 41, "ATTACH": 42, "BELL": 43,
        "OPERATIONS": 44, "MEASURED": 45, "FINISHED": 52,
    }  # fmt: skip
    flags = (
        Flag.ACKNOWLEDGE, Flag.REQUEST, Flag.BATCH, Flag.CHUNKED, Flag.LAST, Flag.TOPIC_CREDIT, Flag.TRACKED,
        Flag.SHARED,
    )  # fmt: skip
    assert flags == (1, 2, 4, 8, 16, 32, 64, 128)
    assert Flag.TRACED == 32
    assert [int(lane) for lane in Lane] == [0, 1, 2]
    assert [int(content) for content in Content] == [0, 1, 2, 3]


def test_a_payload_is_not_copied_and_not_joined_to_its_header() -> None:
    payload = memoryview(bytearray(100_000))
    buffers: list[object] = []
    encode(Frame(Kind.PUBLISH, payload=payload), buffers)
    assert len(buffers) == 2
    assert buffers[1] is payload


def test_an_empty_payload_is_no_buffer() -> None:
    buffers: list[object] = []
    assert encode(Frame(Kind.FLUSH, payload=memoryview(b"")), buffers) == HEADER_BYTES
    assert len(buffers) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0, 0, 0, 0), "unknown kind 0"),
        ((200, 0, 0, 0, 0), "unknown kind 200: kinds are 1 to"),
        ((1, 3, 0, 0, 0), "unknown lane 3: lanes are 0 to 2"),
        ((1, 0, FRAME_BODY_BYTES_MAX + 1, 0, 0), f"body of {FRAME_BODY_BYTES_MAX + 1} bytes is over the limit"),
        (
            (1, 0, 0, FRAME_PAYLOAD_BYTES_MAX + 1, 0),
            f"payload of {FRAME_PAYLOAD_BYTES_MAX + 1} bytes is over the limit",
        ),
        ((2, 0, 0, 0, MESSAGE_BYTES_MAX + 1), f"a message of {MESSAGE_BYTES_MAX + 1} bytes: the limit is"),
    ],
)
def test_a_header_is_refused_with_value_and_limit(arguments: tuple[int, int, int, int, int], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        check_header(*arguments)


def test_the_limits_themselves_are_allowed() -> None:
    check_header(1, 2, FRAME_BODY_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, MESSAGE_BYTES_MAX)
    session = opened()
    header = HEADER.pack(2, 0, 1, 0, 0, 0, 0, 0, FRAME_BODY_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, 0, 0, 0)
    (frame,) = read(session, header + bytes(FRAME_BODY_BYTES_MAX) + bytes(FRAME_PAYLOAD_BYTES_MAX))
    assert (len(frame.body), len(frame.payload)) == (FRAME_BODY_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX)


def test_repr_is_a_line_for_the_log() -> None:
    assert repr(Frame(Kind.CHUNK, number=1, payload=b"abc")) == "<CHUNK number=1 target=0 sequence=0 3 bytes>"


u8, u32, u64 = st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
silent_kinds = st.sampled_from([kind for kind in Kind if kind not in (Kind.PING, Kind.PONG, Kind.CLOSE)])


@given(
    st.lists(
        st.builds(
            Frame, silent_kinds, u8, st.sampled_from(Lane), u8, u32, u32, u32, u32,
            st.integers(0, MESSAGE_BYTES_MAX), u64, u64,
            st.binary(max_size=300), st.one_of(st.binary(max_size=300), st.just(bytes(20_000))),
        ),
        max_size=8,
    ),
    st.data(),
)  # fmt: skip
def test_any_frames_come_back_however_the_stream_is_split(frames: list[Frame], data: st.DataObject) -> None:
    buffers: list[bytes] = []
    for frame in frames:
        encode(frame, buffers)
    stream = b"".join(bytes(buffer) for buffer in buffers)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12))
    session, found, start = opened(), [], 0
    for end in [*sorted(cuts), len(stream)]:
        found += read(session, stream[start:end])
        start = end
    assert found == frames


def test_a_kind_that_has_no_name_is_told_by_its_number() -> None:
    assert kind_name(Kind.GIVE_UP) == "GIVE_UP"
    assert kind_name(0) == "kind 0"
