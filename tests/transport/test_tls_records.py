"""When somebody who begins to speak TLS has said enough for an answer."""

from __future__ import annotations

import pytest

from broker.transport.tls.records import has_whole_record


@pytest.mark.parametrize(
    ("start", "whole"),
    [
        (b"", False),
        (b"\x16", False),
        (b"\x16\x03\x01\x00", False),
        (b"\x16\x03\x01\x00\x03ab", False),
        (b"\x16\x03\x01\x00\x03abc", True),
        (b"\x16\x03\x01\x00\x03abcd", True),
        (b"\x16\x03\x01\x00\x00", True),
        (b"G", True),
        (b"\x15\x03\x01", True),
    ],
)
def test_a_whole_record_is_enough_and_so_is_what_is_no_handshake(start: bytes, whole: bool) -> None:
    assert has_whole_record(start) is whole
