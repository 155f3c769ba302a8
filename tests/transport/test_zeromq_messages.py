"""What one ZeroMQ message says, in literal bytes (docs/wire.md section 16)."""

from __future__ import annotations

import pytest

from broker.transport.zeromq.messages import (
    HEADER,
    OPEN,
    REASON_BYTES_MAX,
    Kind,
    Malformed,
    read_header,
    reason_of,
    reset,
)


def test_open_is_nine_fixed_bytes() -> None:
    assert OPEN == b"\x01TBUSZMQ1"


def test_a_header_is_a_kind_and_a_position() -> None:
    header = HEADER.pack(Kind.DATA, 0x0102030405060708)
    assert header == b"\x02\x08\x07\x06\x05\x04\x03\x02\x01"
    assert read_header(header + b"bytes of the stream") == (Kind.DATA, 0x0102030405060708)


@pytest.mark.parametrize("first", [b"", b"\x02" + bytes(7), b"\x00" + bytes(8), b"\x06" + bytes(8), b"GET / HTTP/1.1"])
def test_what_is_no_header_is_refused(first: bytes) -> None:
    with pytest.raises(Malformed):
        read_header(first)


def test_a_reason_comes_bounded_and_printable() -> None:
    assert reset("no") == b"\x05" + bytes(8) + b"no"
    assert reason_of(reset("x" * 10_000)) == "x" * REASON_BYTES_MAX
    assert reason_of(b"\x05" + bytes(8) + b"a\n\x1b[31m\xff") == "a??[31m\ufffd"
