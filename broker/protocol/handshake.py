"""The first bytes of a session, fixed for all versions (docs/wire.md section 1).

      0                        8             10            12              16
      +------------------------+-------------+-------------+---------------+---- - -
      | magic                  | version_min | version_max | body_bytes u32| body ...
      +------------------------+-------------+-------------+---------------+---- - -

The client sends a Hello with the versions that it speaks; the broker answers with a Welcome (both fields then hold the
version it chose) or a Refusal. The magic holds a byte that no text has and the two line ends, so that a peer that
speaks something else, or a link that converts text, is noticed at once.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from broker.errors import ProtocolError
from broker.limits import HELLO_BODY_BYTES_MAX
from broker.protocol.bodies import Hello, Refusal, Welcome
from broker.protocol.codes import Code
from broker.protocol.strangers import HTTP_METHODS, describe

MAGIC: Final = b"\x93TBUS\r\n\x1a"
PREAMBLE: Final = struct.Struct("<8sHHI")
PREAMBLE_BYTES: Final = PREAMBLE.size
VERSION_MIN: Final = 1
VERSION_MAX: Final = 1

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Hello | Welcome | Refusal)
_EXPLANATION: Final = (
    b"This is a tensorbus broker. This port speaks the tensorbus protocol; HTTP is at the admin address.\r\n"
)


def encode_greeting(
    body: Hello | Welcome | Refusal, version_min: int = VERSION_MIN, version_max: int = VERSION_MAX
) -> bytes:
    """A Hello, Welcome or Refusal with the preamble in front."""
    data = _encoder.encode(body)
    return PREAMBLE.pack(MAGIC, version_min, version_max, len(data)) + data


def decode_greeting(data: memoryview) -> tuple[Hello | Welcome | Refusal, int, int, int] | None:
    """The greeting at the start of `data`.

    Returns:
        The body, the lowest and highest version, and the bytes used; None when more bytes are needed.

    Raises:
        ProtocolError: these are not the first bytes of a session, or they are over the limit; the code says which.
    """
    start = bytes(data[: len(MAGIC)])
    if not MAGIC.startswith(start[: len(MAGIC)]):
        raise ProtocolError(describe(bytes(data[:16])), Code.NOT_OURS)
    if len(data) < PREAMBLE_BYTES:
        return None
    _, version_min, version_max, body_bytes = PREAMBLE.unpack_from(data)
    if body_bytes > HELLO_BODY_BYTES_MAX:
        raise ProtocolError(f"hello of {body_bytes} bytes is over the limit of {HELLO_BODY_BYTES_MAX}", Code.LIMIT)
    end = PREAMBLE_BYTES + body_bytes
    if len(data) < end:
        return None
    if version_max < VERSION_MIN or version_min > VERSION_MAX:
        raise ProtocolError(
            f"no common version: the peer speaks {version_min} to {version_max}, "
            f"this side {VERSION_MIN} to {VERSION_MAX}; upgrade the older one",
            Code.VERSION,
        )
    try:
        body = _decoder.decode(data[PREAMBLE_BYTES:end])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed hello: {error}") from error
    return body, version_min, version_max, end


def answer_to(error: ProtocolError, first_bytes: bytes) -> bytes:
    """What the broker says to a peer whose greeting it does not take, before it closes."""
    if error.code == Code.NOT_OURS:
        return answer_to_stranger(first_bytes)
    return encode_greeting(Refusal(error.code, str(error)))


def too_late(hello_timeout_s: float) -> ProtocolError:
    """Why somebody who has not said hello in time has to go."""
    return ProtocolError(f"no complete hello within {hello_timeout_s:g} s", Code.NOT_OURS)


def answer_to_stranger(first_bytes: bytes) -> bytes:
    """What the broker says to a peer that speaks something else, so that a person sees the mistake."""
    if first_bytes.startswith(HTTP_METHODS):
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {len(_EXPLANATION)}\r\n"
        return head.encode() + b"Connection: close\r\n\r\n" + _EXPLANATION
    return _EXPLANATION
