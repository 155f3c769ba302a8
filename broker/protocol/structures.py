"""Structures: values with tensors in them, as one payload (docs/wire.md section 8).

The value is one MessagePack value, in which extension 1, holding a TensorMeta, stands for each tensor. The elements of
the tensors follow, in the order in which the value names them, each at the next multiple of 64 bytes:

    0                    8                              64 n           64 m
    +--------------------+-----------------------+------+----------+---+----------+--- - -
    | value_bytes    u64 | value (value_bytes)   | zeros| tensor 0 | 0 | tensor 1 |
    +--------------------+-----------------------+------+----------+---+----------+--- - -

Where a tensor lies is not written down, because it follows from the lengths of those before it: so none can overlap
another one, or lie outside of the payload. The tensors are sent from where they are and read where they arrive.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from broker.buffers import Buffer, Gathered
from broker.errors import InvalidValue, ProtocolError
from broker.limits import PLACED_BYTES_MIN, VALUE_DEPTH_MAX, VALUE_TENSORS_MAX
from broker.protocol.plain import can_be_key, convert, unknown_extension
from broker.protocol.tensors import Array, TensorMeta, describe, flat_bytes, view_tensor

TENSOR_EXTENSION: Final = 1
ALIGNMENT_BYTES: Final = 64
"""A cache line, and the longest vector register: what the libraries that read arrays ask for at most."""
_LENGTH: Final = struct.Struct("<Q")
_ZEROS: Final = bytes(ALIGNMENT_BYTES)

_meta_encoder: Final = msgspec.msgpack.Encoder()
_meta_decoder: Final = msgspec.msgpack.Decoder(TensorMeta)
_CONTAINERS: Final = (dict, list, tuple, set, frozenset)
_LEAVES: Final = frozenset((type(None), bool, int, float, str, bytes, np.ndarray))
"""What most values consist of, and is seen to be no container at once."""


def encode_structure(value: object) -> bytes | Gathered:
    """A value with tensors in it as a payload, which refers to the tensors' memory unless it is short.

    Raises:
        InvalidValue: something in it cannot be sent.
    """
    check_containers(value)
    writer = _Writer()
    encoded = msgspec.msgpack.Encoder(enc_hook=writer.place).encode(value)
    head = b"".join((_LENGTH.pack(len(encoded)), encoded, _padding(_LENGTH.size + len(encoded))))
    payload = Gathered([head, *writer.parts])
    return payload if len(payload) >= PLACED_BYTES_MIN else bytes(payload)


def _padding(end: int) -> bytes:
    """The zeros between `end` and the next tensor."""
    return _ZEROS[: -end % ALIGNMENT_BYTES]


class _Writer:
    """Collects the tensors of one value.

    Attributes:
        parts: their elements, and zeros between them.
    """

    __slots__ = ("_end", "_tensors", "parts")

    def __init__(self) -> None:
        self.parts: list[Buffer] = []
        self._tensors = 0
        # Counted from the first tensor, which lies at a multiple of the alignment itself.
        self._end = 0

    def place(self, value: object) -> object:
        """What stands in the value for something that MessagePack does not have."""
        array = convert(value)
        if not isinstance(array, np.ndarray):
            return array
        self._tensors += 1
        if self._tensors > VALUE_TENSORS_MAX:
            raise InvalidValue("value of more than", VALUE_TENSORS_MAX, "tensors cannot be sent; send it in parts")
        described = _meta_encoder.encode(describe(array))
        padding, elements = _padding(self._end), flat_bytes(array)
        if padding:
            self.parts.append(padding)
        if elements:
            self.parts.append(elements)
        self._end += len(padding) + len(elements)
        return msgspec.msgpack.Ext(TENSOR_EXTENSION, described)


def check_containers(value: object) -> None:
    """Refuses a value of lists and dicts that its reader could not make again.

    Raises:
        InvalidValue: it is nested too deeply, or a dict has a key that MessagePack does not have.
    """
    level = [value]
    for _ in range(VALUE_DEPTH_MAX):
        inner: list[object] = []
        for container in level:
            members: Iterable[object] = container if isinstance(container, _CONTAINERS) else ()
            if isinstance(container, dict):
                if not all(map(can_be_key, container)):
                    raise InvalidValue("key of", type(value).__name__, "cannot be sent")
                members = container.values()
            if not _LEAVES.issuperset(map(type, members)):
                inner += [member for member in members if isinstance(member, _CONTAINERS)]
        if not inner:
            return
        level = inner
    raise InvalidValue("value", type(value).__name__, f"is nested deeper than the limit of {VALUE_DEPTH_MAX}")


def decode_structure(payload: Buffer) -> object:
    """The value that `encode_structure` was given; its arrays lie in the payload and are as writable as it is.

    Raises:
        ProtocolError: the payload is not one of a structure.
        InvalidValue: a tensor of bfloat16, and the package ml_dtypes is not installed.
    """
    flat = np.frombuffer(payload, np.uint8)
    start = _LENGTH.size
    if flat.nbytes < start:
        raise ProtocolError(f"structure of {flat.nbytes} bytes is truncated")
    end = start + _LENGTH.unpack_from(payload)[0]
    if end > flat.nbytes:
        raise ProtocolError(f"structure whose value ends at {end} has a payload of {flat.nbytes} bytes")
    reader = _Reader(flat, end)
    value = msgspec.msgpack.Decoder(ext_hook=reader.take).decode(memoryview(payload)[start:end])
    if reader.end != flat.nbytes:
        raise ProtocolError(f"structure of {reader.end} bytes has a payload of {flat.nbytes}")
    return value


class _Reader:
    """Finds the tensors of one value.

    Attributes:
        end: where the last one ends.
    """

    __slots__ = ("_flat", "_tensors", "end")

    def __init__(self, flat: npt.NDArray[np.uint8], end: int) -> None:
        self.end = end
        self._flat = flat
        self._tensors = 0

    def take(self, code: int, data: memoryview) -> Array:
        """The next tensor."""
        if code != TENSOR_EXTENSION:
            raise unknown_extension(code)
        self._tensors += 1
        if self._tensors > VALUE_TENSORS_MAX:
            raise ProtocolError(f"structure of more than {VALUE_TENSORS_MAX} tensors")
        meta = _meta_decoder.decode(data)
        meta.check()
        start = self.end + -self.end % ALIGNMENT_BYTES
        end = start + meta.nbytes
        if end > self._flat.nbytes:
            raise ProtocolError(
                f"tensor {meta.dtype}{list(meta.shape)} ends at {end}, its payload has {self._flat.nbytes} bytes"
            )
        self.end = end
        return view_tensor(meta, self._flat[start:end])
