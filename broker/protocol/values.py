"""Values of the application to payloads and back (docs/wire.md section 8).

bytes, bytearray          -> BYTES        the bytes themselves
an array at the top       -> TENSOR       its elements, not copied, and a TensorMeta in the body
a value with arrays in it -> STRUCTURE    the value and behind it the elements of each array, not copied
everything else           -> MESSAGEPACK  None, bool, int, float, str, bytes, list, dict
"""

from __future__ import annotations

from typing import Final

import msgspec

from broker.buffers import Buffer, Payload
from broker.errors import InvalidValue, ProtocolError
from broker.limits import VALUE_DEPTH_MAX
from broker.protocol.frames import Content
from broker.protocol.plain import FAILURES, HoldsTensor, can_be_key, decode_plain, encode_plain
from broker.protocol.structures import decode_structure, encode_structure
from broker.protocol.tensors import TensorMeta, as_array, describe, describe_flat, read_tensor

Encoded = tuple[int, TensorMeta | None, Payload]
"""Content, description and payload of a message."""

# Plain numbers: comparing with an IntEnum takes as long as decoding a number.
_MESSAGEPACK, _BYTES, _TENSOR, _STRUCTURE = map(int, Content)
_PLAIN_TYPES: Final = frozenset((type(None), bool, int, float, str, list, tuple, dict))


def encode_value(value: object) -> Encoded:
    """A value as content, description and payload.

    Args:
        value: see the table above. The payload of an array, or of a value with arrays, refers to the arrays' memory.

    Raises:
        InvalidValue: the value, or something in it, has no form on the wire; the text says which, where it is and what
            to do.
    """
    kind = type(value)
    if kind is bytes:
        return _BYTES, None, value  # type: ignore[return-value]
    if kind not in _PLAIN_TYPES:
        if isinstance(value, bytearray):
            return _BYTES, None, bytes(value)
        array = as_array(value)
        if array is not None:
            meta, flat = describe_flat(array)
            return _TENSOR, meta, flat
    try:
        # Most values are plain, and only the encoder can tell without a second walk through them.
        return _MESSAGEPACK, None, encode_plain(value)
    except HoldsTensor:
        pass
    except FAILURES as error:
        raise _refusal(value, error) from error
    return _STRUCTURE, None, encode_nested(value)


def encode_nested(value: object) -> Payload:
    """A value as the payload of a STRUCTURE, whether or not there are arrays in it.

    Raises:
        InvalidValue: something in it has no form on the wire; the text says what, and where it is.
    """
    try:
        return encode_structure(value)
    except FAILURES as error:
        raise _refusal(value, error) from error


def _refusal(value: object, error: Exception) -> InvalidValue:
    """Why a value cannot be sent, and which part of it."""
    problem = _find(value, "value", VALUE_DEPTH_MAX)
    if problem is not None:
        return problem
    if isinstance(error, InvalidValue):
        return error
    return InvalidValue("value of type", type(value).__name__, f"cannot be sent: {error}")


def _find(value: object, place: str, depth: int) -> InvalidValue | None:
    """The first part of a value that cannot be sent, if that is what is wrong with it."""
    if isinstance(value, (dict, list, tuple)):
        if not depth:
            return None
        if isinstance(value, dict):
            for key in value:
                if not can_be_key(key):
                    return InvalidValue(f"{place}: key", key, "cannot be sent: send text or numbers as keys")
            parts = ((f"[{_quoted(key)}]", inner) for key, inner in value.items())
        else:
            parts = ((f"[{index}]", inner) for index, inner in enumerate(value))
        for name, inner in parts:
            problem = _find(inner, place + name, depth - 1)
            if problem is not None:
                return problem
        return None
    try:
        converted = as_array(value)
        if converted is not None:
            describe(converted)
        else:
            encode_plain(value)
    except InvalidValue as error:
        return error if place == "value" else InvalidValue(f"{place}: {error.what}", error.value, error.problem)
    except FAILURES as error:
        return InvalidValue(f"{place} of type", type(value).__name__, f"cannot be sent: {error}")
    return None


def _quoted(key: object) -> str:
    return f'"{key}"' if isinstance(key, str) else repr(key)


def decode_value(content: int, meta: TensorMeta | None, payload: Buffer) -> object:
    """The value that `encode_value` was given, or the nearest that the wire has (a tuple comes back as a list).

    Raises:
        ProtocolError: the payload is not what its content says.
    """
    try:
        if content == _MESSAGEPACK:
            return decode_plain(payload)
        if content == _STRUCTURE:
            return decode_structure(_writable(payload))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed MessagePack value: {error}") from error
    if content == _BYTES:
        return payload if type(payload) is bytes else bytes(payload)
    if content != _TENSOR or meta is None:
        raise ProtocolError(f"message of unknown content {content}, or a tensor without a description")
    return read_tensor(meta, _writable(payload))


def _writable(payload: Buffer) -> Buffer:
    """A small payload arrives as bytes, which numpy would show read-only."""
    return bytearray(payload) if type(payload) is bytes else payload
