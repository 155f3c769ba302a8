"""What somebody speaks who does not speak the tensorbus protocol, by the first bytes: words for a log."""

from __future__ import annotations

from typing import Final

HTTP_METHODS: Final = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"PATCH ", b"TRACE ")
_KNOWN: Final = (
    (HTTP_METHODS, "HTTP; the HTTP interface is at the admin address"),
    ((b"PRI * HTTP/2",), "HTTP/2; the HTTP interface is at the admin address, in HTTP/1.1"),
    ((b"\x16\x03",), "TLS; this port is not encrypted, so connect to it without TLS"),
    ((b"\x15\x03",), "TLS; connect to it at tls://"),
    ((b"SSH-",), "SSH"),
    (
        (b"\xff\x00\x00\x00\x00\x00\x00\x00", b"\xff\x00\x00\x00\x00\x00\x00\x01"),
        "ZeroMQ; that is at a zmq+tcp address",
    ),
    ((b"*1\r\n$", b"*2\r\n$", b"*3\r\n$", b"PING\r\n"), "Redis"),
    ((b"\x10",), "MQTT"),
    ((b"AMQP",), "AMQP"),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "pickle, which nobody reads here"),
    ((b"\x00\x00\x00", b"\x03\x00\x00"), "a scanner's probe"),
)
"""Which first bytes give whom away; MQTT's CONNECT and scanners last, whose bytes are few."""


def describe(first_bytes: bytes) -> str:
    """What these bytes look like, as in `this looks like TLS`; what they are where that is not known."""
    if not first_bytes:
        return "it has said nothing"
    for starts, words in _KNOWN:
        if first_bytes.startswith(starts):
            return f"this looks like {words}"
    return f"it does not speak the tensorbus protocol: its first bytes are {first_bytes[:8]!r}"
