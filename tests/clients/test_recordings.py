"""Recordings: what was recorded is read again, and nothing that is torn or damaged is ever taken for a message."""

from __future__ import annotations

import itertools
import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clients
from broker.errors import InvalidValue, ProtocolError
from broker.protocol.bodies import MessageBody, encode_body
from broker.protocol.values import encode_value
from clients.reading.messages import Message, Publication
from clients.recordings import (
    HEAD_BYTES_MAX,
    PART_BYTES,
    Kind,
    Reader,
    Recorded,
    Start,
    Writer,
    check_readable,
    digest_of,
)

START = Start(["#"], 123)


def message(value: object, topic: str = "a/b", sequence: int = 1, headers: dict[str, str] | None = None) -> Message:
    content, tensor, payload = encode_value(value)
    body = encode_body(MessageBody(headers=headers, tensor=tensor)) if headers or tensor else b""
    return Message(Publication(topic, "me"), sequence, 77, 1, content, body, bytes(payload), None)


def recorded(file: Path, *values: object) -> Path:
    with Writer(file, START) as writer:
        for number, value in enumerate(values, 1):
            writer.add(message(value, sequence=number), received_ns=1000 * number)
    return file


def read(file: Path) -> tuple[list[Recorded], Reader]:
    with Reader(file) as reader:
        return list(reader), reader


def test_what_was_recorded_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.rec"
    with Writer(file, Start(["metrics/#"], 55, "tcp://there")) as writer:
        writer.add(message({"loss": 0.5}, headers={"run": "one"}), received_ns=99)
        writer.close(lost=3)
    (first,), reader = read(file)
    head = first.head
    assert (head.topic, head.sender, head.sequence, head.published_ns, head.received_ns) == ("a/b", "me", 1, 77, 99)
    assert (head.lane, head.headers, head.tensor, first.value) == ("default", {"run": "one"}, None, {"loss": 0.5})
    assert (reader.start, reader.ended, reader.problem, reader.lost) == (
        Start(["metrics/#"], 55, "tcp://there"), True, "", 3,
    )  # fmt: skip
    assert reader.good_bytes == reader.size_bytes == file.stat().st_size


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 5])
def test_payloads_of_all_lengths_are_kept_whole(tmp_path: Path, size: int) -> None:
    payload = np.random.default_rng(size).bytes(size)
    (first, second), reader = read(recorded(tmp_path / "a.rec", payload, "behind it"))
    assert (bytes(first.payload), second.value, reader.problem) == (payload, "behind it", "")


def test_tensors_and_structures_come_back(tmp_path: Path) -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    (first, second), _ = read(recorded(tmp_path / "a.rec", array, {"weights": array.astype(np.float32), "step": 1}))
    assert isinstance(first.value, np.ndarray)
    assert (first.value.dtype, first.value.tolist()) == (array.dtype, array.tolist())
    assert second.value["weights"].tolist() == array.tolist()  # type: ignore[index]


def test_a_digest_is_of_what_a_message_holds(tmp_path: Path) -> None:
    (one, same, other), _ = read(recorded(tmp_path / "a.rec", [1, 2], [1, 2], [1, 3]))
    assert one.head.digest == same.head.digest != other.head.digest
    assert len(one.head.digest) == 32
    # The same bytes as another shape are something else.
    flat, square = np.zeros(4), np.zeros((2, 2))
    digests = {digest_of(*encode_value(array)) for array in (flat, square)}  # type: ignore[arg-type]
    assert len(digests) == 2


def test_a_file_that_is_torn_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    whole = recorded(tmp_path / "whole.rec", "first", b"x" * 100, "third").read_bytes()
    ends = [reader_end(tmp_path, whole, count) for count in (0, 1, 2, 3)]
    torn = tmp_path / "torn.rec"
    for size in range(16, len(whole)):
        torn.write_bytes(whole[:size])
        messages, reader = read(torn)
        assert len(messages) == sum(size >= end for end in ends[1:])
        assert not reader.ended
        # Exactly between two records nothing is torn, and only the END is missing.
        assert reader.torn == bool(reader.problem)
        assert reader.good_bytes <= size
        if not reader.torn:
            assert reader.good_bytes == size


def reader_end(tmp_path: Path, whole: bytes, count: int) -> int:
    """Where in a recording its first messages end."""
    file = tmp_path / "part.rec"
    file.write_bytes(whole)
    with Reader(file) as reader:
        for _ in itertools.islice(reader, count):
            pass
        return reader.good_bytes


def test_a_large_message_without_its_last_part_is_none(tmp_path: Path) -> None:
    file = recorded(tmp_path / "a.rec", "first", bytes(3 * PART_BYTES))
    file.write_bytes(file.read_bytes()[: -PART_BYTES - 200])
    messages, reader = read(file)
    assert ([each.value for each in messages], reader.torn) == (["first"], True)
    assert "a record without its end" in reader.problem


def test_any_flipped_bit_is_seen(tmp_path: Path) -> None:
    whole = recorded(tmp_path / "whole.rec", "first", "second").read_bytes()
    damaged = tmp_path / "damaged.rec"
    for byte in range(16, len(whole)):
        damaged.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        messages, reader = read(damaged)
        # Three bytes of each record's head are there for later versions, and say nothing.
        assert reader.problem or [each.value for each in messages] == ["first", "second"]
        assert [each.value for each in messages] == ["first", "second"][: len(messages)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rubbish=st.binary(max_size=300))
def test_rubbish_behind_a_head_is_no_message(tmp_path: Path, rubbish: bytes) -> None:
    file = tmp_path / "rubbish.rec"
    file.write_bytes(b"TBUSREC\n\x01\x00" + bytes(6) + rubbish)
    messages, reader = read(file)
    assert messages == []
    assert reader.problem or not rubbish


def record_of(kind: int, body: bytes) -> bytes:
    return struct.pack("<IIB3x", len(body), zlib.crc32(body, zlib.crc32(bytes([kind]))), kind) + body


@pytest.mark.parametrize(
    ("behind", "problem"),
    [
        (record_of(Kind.PART, b"x"), "a part of no message"),
        (record_of(99, b"x"), "a part of no message"),
        (record_of(Kind.MESSAGE, b"x"), "a message without a head"),
        (record_of(Kind.MESSAGE, struct.pack("<I", 2) + b"{}"), "a record that cannot be read"),
        (record_of(Kind.MESSAGE, struct.pack("<I", 1 << 31) + b"{}"), "a record that cannot be read"),
        (record_of(Kind.END, b"[]"), "a record that cannot be read"),
        (struct.pack("<IIB3x", 1 << 30, 0, 2), "a record of 1073741824 bytes"),
    ],
    ids=["part", "unknown", "short", "empty head", "long head", "end", "size"],
)
def test_what_cannot_be_stops_the_reading(tmp_path: Path, behind: bytes, problem: str) -> None:
    file = recorded(tmp_path / "a.rec", "first")
    file.write_bytes(file.read_bytes() + behind)
    messages, reader = read(file)
    assert [each.value for each in messages] == ["first"]
    assert problem in reader.problem
    assert not reader.torn


def test_a_head_that_lies_about_the_size_is_seen(tmp_path: Path) -> None:
    head = b'{"topic":"a","sender":"","sequence":1,"published_ns":0,"received_ns":0,"lane":"bulk","content":1,'
    head += b'"size":%d,"digest":""}'
    for size, problem in ((1, "a message of 1 bytes that has 3"), (9, "a message without its end")):
        file = recorded(tmp_path / f"{size}.rec")
        encoded = head % size
        file.write_bytes(
            file.read_bytes() + record_of(Kind.MESSAGE, struct.pack("<I", len(encoded)) + encoded + b"abc")
        )
        messages, reader = read(file)
        assert messages == []
        assert problem in reader.problem


def test_a_topic_that_cannot_be_stops_the_reading(tmp_path: Path) -> None:
    file = recorded(tmp_path / "a.rec", "first")
    head = (
        b'{"topic":"a\\u001b[2J","sender":"","sequence":1,"published_ns":0,"received_ns":0,"lane":"bulk","content":1,'
    )
    head += b'"size":0,"digest":""}'
    file.write_bytes(file.read_bytes() + record_of(Kind.MESSAGE, struct.pack("<I", len(head)) + head))
    messages, reader = read(file)
    assert [each.value for each in messages] == ["first"]
    assert "a message of a topic that cannot be: topic 'a\\x1b[2J'" in reader.problem


def test_a_value_that_is_not_what_its_digest_says_is_refused(tmp_path: Path) -> None:
    (first,), _ = read(recorded(tmp_path / "a.rec", "words"))
    assert check_readable(first) == "words"
    first.payload[-1] ^= 1
    with pytest.raises(ProtocolError, match="has another digest than it says"):
        check_readable(first)


def test_a_recording_is_not_written_over(tmp_path: Path) -> None:
    file = recorded(tmp_path / "a.rec", "first")
    before = file.read_bytes()
    with pytest.raises(InvalidValue, match="is there already; --append goes on with it"):
        Writer(file, START)
    assert file.read_bytes() == before


def test_one_that_was_torn_can_be_gone_on_with(tmp_path: Path) -> None:
    file = recorded(tmp_path / "a.rec", "first", "second")
    file.write_bytes(file.read_bytes()[:-100])
    with Writer(file, START, append=True) as writer:
        writer.add(message("third"))
    messages, reader = read(file)
    assert [each.value for each in messages] == ["first", "third"]
    assert (reader.problem, reader.ended) == ("", True)


def test_one_that_is_damaged_in_the_middle_is_not_cut_off(tmp_path: Path) -> None:
    file = recorded(tmp_path / "a.rec", "first", "second")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(InvalidValue, match="is damaged, and not only torn at its end"):
        Writer(file, START, append=True)
    assert file.read_bytes() == bytes(data)


@pytest.mark.parametrize("content", [b"", b"words", b"TBUSREC\n\x02\x00" + bytes(6), bytes(100)])
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other"
    file.write_bytes(content)
    for opening in (lambda: Reader(file), lambda: Writer(file, START, append=True)):
        with pytest.raises(InvalidValue, match="recording"):
            opening()
    assert file.read_bytes() == content


@pytest.mark.parametrize("name", ["missing/a.rec", "."])
def test_a_place_that_cannot_be_written_or_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidValue, match="cannot be written|is there already"):
        Writer(tmp_path / name, START)
    with pytest.raises(InvalidValue, match="cannot be read"):
        Reader(tmp_path / name)


def test_after_a_failed_write_nothing_more_is_written() -> None:
    with pytest.raises(OSError, match="No space left"), Full(Path("/dev/full"), START, append=True) as writer:
        writer.add(message(bytes(200_000)))
    assert writer._file.closed


class Full(Writer):
    """Writes where nothing can be written."""

    def __init__(self, path: Path, start: Start, *, append: bool = False) -> None:
        self.messages = self.payload_bytes = self.size_bytes = 0
        self._broken = False
        self._file = open(path, "wb")  # noqa: SIM115 - the writer closes it
        self._put(Kind.START, b"{}")


def test_messages_of_the_wire_can_be_recorded(tmp_path: Path) -> None:
    with clients.connect("inproc://recordings") as bus, bus.subscribe("#") as subscription:
        for value in (1, "two", np.ones(100_000), {"four": np.ones(3)}):
            bus.publish("topic", value, headers={"a": "b"}, lane="bulk")
        with Writer(tmp_path / "a.rec", START) as writer:
            for _ in range(4):
                writer.add(subscription.next(20))
    messages, _ = read(tmp_path / "a.rec")
    assert [each.head.lane for each in messages] == ["bulk"] * 4
    assert [each.head.sequence for each in messages] == [1, 2, 3, 4]
    assert messages[1].value == "two"
    assert messages[2].value.shape == (100_000,)  # type: ignore[attr-defined]


def test_the_longest_head_fits(tmp_path: Path) -> None:
    headers = {f"header-{number}": "é" * 1000 for number in range(15)}
    with Writer(tmp_path / "a.rec", START) as writer:
        writer.add(message(bytes(PART_BYTES), topic="/".join("t" * 16 for _ in range(30)), headers=headers))
    (first,), _ = read(tmp_path / "a.rec")
    assert first.head.headers == headers
    assert HEAD_BYTES_MAX > 32 * 1024 * 6, "headers of 32 KiB, each letter escaped"


def test_others_cannot_read_a_recording(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Writer(tmp_path / "a.rec", START):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.rec").stat().st_mode) == 0o600
