"""Values of the application to payloads and back (docs/wire.md section 8).

bytes, bytearray          -> BYTES        the bytes themselves
an array at the top       -> TENSOR       its elements, not copied, and a TensorMeta in the body
everything else           -> MESSAGEPACK  None, bool, int, float, str, bytes, list, dict; an array inside travels as
                                          extension 1: the length of its TensorMeta (u32), that, its elements (copied)
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import numpy as np

from broker.buffers import Buffer
from broker.errors import InvalidValue, ProtocolError
from broker.protocol.frames import Content
from broker.protocol.tensors import (
    TensorMeta,
    as_array,
    describe,
    flat_bytes,
    read_tensor,
)

TENSOR_EXTENSION: Final = 1
_LENGTH: Final = struct.Struct("<I")

_meta_encoder: Final = msgspec.msgpack.Encoder()
_meta_decoder: Final = msgspec.msgpack.Decoder(TensorMeta)


def _encode_inner(value: object) -> object:
    if isinstance(value, np.generic) and value.dtype.kind in "biufUS":
        return value.item()
    array = as_array(value)
    if array is None:
        raise InvalidValue(
            "value of type",
            type(value).__name__,
            "cannot be sent: send None, bool, int, float, str, bytes, list, dict or arrays",
        )
    meta = _meta_encoder.encode(describe(array))
    return msgspec.msgpack.Ext(TENSOR_EXTENSION, b"".join((_LENGTH.pack(len(meta)), meta, flat_bytes(array))))


def _decode_inner(code: int, data: memoryview) -> object:
    if code != TENSOR_EXTENSION:
        raise ProtocolError(f"value holds a MessagePack extension of unknown type {code}")
    if len(data) < _LENGTH.size:
        raise ProtocolError(f"tensor extension of {len(data)} bytes is truncated")
    start = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    meta = _meta_decoder.decode(data[_LENGTH.size : start])
    return read_tensor(meta, bytearray(data[start:]))


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_encode_inner)
_decoder: Final = msgspec.msgpack.Decoder(ext_hook=_decode_inner)


def encode_value(value: object) -> tuple[int, TensorMeta | None, Buffer]:
    """A value as content, description and payload.

    Args:
        value: see the table above. The payload of an array refers to the array's memory.

    Raises:
        InvalidValue: the value, or something in it, has no form on the wire; the text says which and what to do.
    """
    if type(value) is bytes:
        return Content.BYTES, None, value
    if isinstance(value, bytearray):
        return Content.BYTES, None, bytes(value)
    array = as_array(value)
    if array is not None:
        return Content.TENSOR, describe(array), flat_bytes(array)
    try:
        return Content.MESSAGEPACK, None, _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue("value of type", type(value).__name__, f"cannot be sent: {error}") from error


def decode_value(content: int, meta: TensorMeta | None, payload: Buffer) -> object:
    """The value that `encode_value` was given, or the nearest that the wire has (a tuple comes back as a list).

    Raises:
        ProtocolError: the payload is not what its content says.
    """
    if content == Content.MESSAGEPACK:
        try:
            return _decoder.decode(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError(f"malformed MessagePack value: {error}") from error
    if content == Content.BYTES:
        return payload if type(payload) is bytes else bytes(payload)
    if content != Content.TENSOR or meta is None:
        raise ProtocolError(f"message of unknown content {content}, or a tensor without a description")
    # A small payload arrives as bytes, which numpy would show read-only.
    return read_tensor(meta, bytearray(payload) if type(payload) is bytes else payload)
