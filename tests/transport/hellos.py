"""What TLS says first: as OpenSSL says it, and written down byte by byte."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

ALPN, KEY_SHARE, SERVER_NAME = 16, 51, 0


def spoken(*protocols: str) -> bytes:
    """The ClientHello of a client of OpenSSL, in its record."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if protocols:
        context.set_alpn_protocols(list(protocols))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="broker.example")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("nobody has answered")


def sized(content: bytes, width: int) -> bytes:
    """A list behind its length."""
    return len(content).to_bytes(width, "big") + content


def alpn(*protocols: bytes) -> tuple[int, bytes]:
    """The extension of these protocols."""
    return ALPN, sized(b"".join(sized(each, 1) for each in protocols), 2)


def written(*extensions: tuple[int, bytes], kind: int = 1) -> bytes:
    """A ClientHello, or another message, with these extensions, without a record."""
    listed = b"".join(number.to_bytes(2, "big") + sized(content, 2) for number, content in extensions)
    fixed = b"\x03\x03" + bytes(range(32)) + sized(bytes(32), 1) + sized(b"\x13\x01\x13\x02", 2) + sized(b"\0", 1)
    return bytes((kind,)) + sized(fixed + sized(listed, 2), 3)


def in_records(message: bytes, sizes: Sequence[int] = ()) -> bytes:
    """A message in records that hold so much each, and one for the rest."""
    records, at = b"", 0
    for size in (*sizes, len(message)):
        part = message[at : at + size]
        at += size
        if part:
            records += b"\x16\x03\x01" + sized(part, 2)
    return records
