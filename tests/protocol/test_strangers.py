"""What somebody speaks who does not speak the protocol, in words for a log."""

from __future__ import annotations

import pytest

from broker.protocol.strangers import describe


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "this looks like HTTP;"),
        (b"PRI * HTTP/2.0\r\n\r\n", "this looks like HTTP/2;"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "this looks like TLS;"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "this looks like TLS; connect to it at tls://"),
        (b"SSH-2.0-OpenSSH_9", "this looks like SSH"),
        (b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f", "this looks like ZeroMQ;"),
        (b"*1\r\n$4\r\nPING\r\n", "this looks like Redis"),
        (b"\x80\x04\x95\x1f", "this looks like pickle,"),
        (b"AMQP\x00\x00\x09\x01", "this looks like AMQP"),
        (b"rubbish and more", "it does not speak the tensorbus protocol: its first bytes are b'rubbish '"),
        (b"", "it has said nothing"),
    ],
)
def test_first_bytes_give_a_protocol_away(first: bytes, words: str) -> None:
    assert describe(first).startswith(words)
