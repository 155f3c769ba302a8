"""Whether what somebody begins with is a TLS record, and a whole one (RFC 8446, section 5.1)."""

from __future__ import annotations

from typing import Final

_HEADER_BYTES: Final = 5
_HANDSHAKE: Final = 22


def has_whole_record(start: bytes) -> bool:
    """Whether OpenSSL would have something to say to these first bytes: a whole record, or no TLS at all."""
    if not start or start[0] != _HANDSHAKE:
        return bool(start)
    if len(start) < _HEADER_BYTES:
        return False
    return len(start) - _HEADER_BYTES >= int.from_bytes(start[3:5], "big")
