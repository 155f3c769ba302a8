"""Plain values: what MessagePack has by itself, and what becomes it."""

from __future__ import annotations

from typing import Final, NoReturn

import msgspec
import numpy as np

from broker.errors import InvalidValue, ProtocolError
from broker.protocol.tensors import as_array


class HoldsTensor(Exception):
    """A value that was taken for a plain one has a tensor in it."""


def convert(value: object) -> object:
    """Something that MessagePack does not have as an array, or as something plain.

    Raises:
        InvalidValue: it is neither.
    """
    if isinstance(value, np.generic) and value.dtype.kind in "biufUS":
        return value.item()
    array = as_array(value)
    if array is None:
        raise InvalidValue(
            "value of type",
            type(value).__name__,
            "cannot be sent: send None, bool, int, float, str, bytes, list, dict or arrays",
        )
    return array


def unknown_extension(code: int) -> ProtocolError:
    """The error of an extension that only a newer reader would know."""
    return ProtocolError(f"value holds a MessagePack extension of unknown type {code}")


def _as_plain(value: object) -> object:
    converted = convert(value)
    if isinstance(converted, np.ndarray):
        raise HoldsTensor
    return converted


def _no_extension(code: int, data: memoryview) -> NoReturn:
    raise unknown_extension(code)


encode_plain: Final = msgspec.msgpack.Encoder(enc_hook=_as_plain).encode
"""A value to MessagePack. Raises HoldsTensor, InvalidValue, and what msgspec raises."""
decode_plain: Final = msgspec.msgpack.Decoder(ext_hook=_no_extension).decode
"""And back. Raises ProtocolError, and what msgspec raises."""
FAILURES: Final = (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError)
"""What encoding raises, InvalidValue among it, when a value cannot be sent."""


def can_be_key(key: object) -> bool:
    """Whether something can be the key of a dict that is sent."""
    if type(key) is str:
        return True
    try:
        encode_plain(key)
    except (HoldsTensor, *FAILURES):
        return False
    return True
