"""Which worker somebody who begins to speak TLS means, and whether all of that is there (docs/wire.md, section 22).

The broker's own hello comes encrypted, and says it only to the worker that has gone through the handshake. So it stands
in what TLS says first as well, the ClientHello, which is in the clear: among the protocols of ALPN (RFC 7301), as
`tensorbus-worker/3`. Nobody answers to that, and whoever names none means the first worker. A ClientHello that somebody
has changed on its way makes the handshake fail; one that names another worker than the hello behind it is refused.

    record    22, version u16, length u16, payload             one or several of them have   RFC 8446, section 5.1
    message   1, length u24, version u16, 32 random bytes, session u8.., ciphers u16.., compression u8.., all of u16:
    extension kind u16, length u16, content                    16 is ALPN: u16 of names, u8.. each

Strangers wrote it. Nothing is believed but what is there: a length only says where to look next, always further on.
"""

from __future__ import annotations

from typing import Final

from broker.limits import STRANGER_RECORDS_MAX, WORKERS_MAX

NOBODY: Final = -1
"""In place of a worker: what was said is no ClientHello, and whoever speaks TLS says so."""
FIRST: Final = 0
"""The worker that is meant by who names none."""
_NAME: Final = b"tensorbus-worker/"
_DIGITS_MAX: Final = len(str(WORKERS_MAX - 1))
_RECORD_HEADER_BYTES: Final = 5
_MESSAGE_HEADER_BYTES: Final = 4
_EXTENSION_HEADER_BYTES: Final = 4
_FIXED_BYTES: Final = 2 + 32
_LISTS: Final = (1, 2, 1)
"""Of session, ciphers and compression: how many bytes their lengths have."""
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_ALPN: Final = 16


def protocol_of(worker: int) -> str:
    """What a dialler names among its protocols to reach a worker."""
    return f"{_NAME.decode()}{worker}"


def has_whole_hello(start: bytes) -> bool:
    """Whether a ClientHello is all there, or none will ever be."""
    return _message(start)[1]


def worker_named(start: bytes) -> int:
    """The worker that a ClientHello names, as far as it is there; NOBODY where that is none."""
    message = _message(start)[0]
    return _named(message) if message[:1] == bytes((_CLIENT_HELLO,)) else NOBODY


def _message(start: bytes) -> tuple[bytes, bool]:
    """The first message of a handshake, out of its records, and whether no more of it will come."""
    message = bytearray()
    at = 0
    for _ in range(STRANGER_RECORDS_MAX):
        if at >= len(start):
            return bytes(message), False
        if start[at] != _HANDSHAKE:
            return bytes(message), True
        length = int.from_bytes(start[at + 3 : at + _RECORD_HEADER_BYTES], "big")
        at += _RECORD_HEADER_BYTES
        message += start[at : at + length]
        at += length
        if at > len(start):
            return bytes(message), False
        if message and message[0] != _CLIENT_HELLO:
            return bytes(message), True
        end = _MESSAGE_HEADER_BYTES + int.from_bytes(message[1:_MESSAGE_HEADER_BYTES], "big")
        if len(message) >= _MESSAGE_HEADER_BYTES and end <= len(message):
            return bytes(message[:end]), True
    # Nobody cuts it up so; whoever speaks TLS may make something of it.
    return bytes(message), True


def _named(message: bytes) -> int:
    at = _MESSAGE_HEADER_BYTES + _FIXED_BYTES
    for width in _LISTS:
        at += width + int.from_bytes(message[at : at + width], "big")
    at += 2
    while at + _EXTENSION_HEADER_BYTES <= len(message):
        kind, length = int.from_bytes(message[at : at + 2], "big"), int.from_bytes(message[at + 2 : at + 4], "big")
        at += _EXTENSION_HEADER_BYTES
        if kind == _ALPN:
            return _among(message[at : at + length])
        at += length
    return FIRST


def _among(protocols: bytes) -> int:
    """The worker that is named among protocols."""
    at = 2
    while at < len(protocols):
        end = at + 1 + protocols[at]
        name = protocols[at + 1 : end] if end <= len(protocols) else b""
        digits = name.removeprefix(_NAME)
        if name.startswith(_NAME) and digits.isdigit() and len(digits) <= _DIGITS_MAX:
            return int(digits)
        at = end
    return FIRST
