"""Tensors on the wire: which bytes an array is, and how to read them back (docs/wire.md section 8).

A tensor travels as its elements in memory order plus a TensorMeta. A C- or Fortran-contiguous array goes as it lies in
memory, without a copy; any other layout is copied once into C order. Big-endian arrays keep their byte order. Nothing
here can run code of the sender's: object arrays, which would need that, are refused.
"""

from __future__ import annotations

import math
from typing import Final, cast

import msgspec
import numpy as np
import numpy.typing as npt

from broker import devices
from broker.buffers import Buffer
from broker.errors import InvalidValue, ProtocolError

Array = npt.NDArray[np.generic]

_NUMPY_NAMES: Final = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
DTYPES: Final[dict[str, np.dtype[np.generic]]] = {name: np.dtype(name) for name in _NUMPY_NAMES}
"""The dtypes that numpy knows by itself. `bfloat16` is the one more that the wire has: two bytes, the upper half of a
float32."""
_KNOWN: Final = {
    dtype.newbyteorder(order): (name, order if dtype.itemsize > 1 else "<")
    for name, dtype in DTYPES.items()
    for order in ("<", ">")
}
"""Name and byte order of each dtype: numpy makes a name anew whenever it is asked for one, which takes long."""
_READ: Final = {
    (name, order): dtype if dtype.itemsize == 1 else dtype.newbyteorder(order)
    for name, dtype in DTYPES.items()
    for order in ("<", ">")
}
"""The other way round."""
_CAST: Final = frozenset(DTYPES[name] for name in ("uint8", "int32", "int64", "float32", "float64"))
"""Dtypes of most arrays, of whose memory Python itself makes bytes, which is quicker."""
BFLOAT16: Final = "bfloat16"
DIMENSIONS_MAX: Final = 32
"""numpy 1 has no more."""
ARRAY_BYTES_MAX: Final = 2**63 - 1
"""What a 64-bit machine can address; numpy has no longer array."""


class TensorMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the bytes of a tensor mean.

    Attributes:
        dtype: a name out of DTYPES, or `bfloat16`.
        shape: lengths of the axes; empty for a scalar.
        order: `C`, the last axis is contiguous, or `F`, the first one is.
        byte_order: `<` little-endian, `>` big-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    order: str = "C"
    byte_order: str = "<"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 2 if self.dtype == BFLOAT16 else DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.itemsize

    def check(self) -> None:
        """Refuses a description of something that no tensor can be.

        Raises:
            ProtocolError: unknown dtype or order, or an impossible shape.
        """
        if self.dtype != BFLOAT16 and self.dtype not in DTYPES:
            raise ProtocolError(f"tensor of unknown dtype {self.dtype!r}: known are {', '.join(DTYPES)}, {BFLOAT16}")
        if len(self.shape) > DIMENSIONS_MAX:
            raise ProtocolError(f"tensor of {len(self.shape)} axes is over the limit of {DIMENSIONS_MAX}")
        # As numpy does, an empty axis does not excuse the others.
        longest = math.prod(max(1, length) for length in self.shape) * self.itemsize
        if longest > ARRAY_BYTES_MAX or any(length < 0 for length in self.shape):
            raise ProtocolError(
                f"tensor of impossible shape {self.shape}: none negative, and {ARRAY_BYTES_MAX} bytes at most"
            )
        if self.dtype == BFLOAT16 and self.byte_order != "<":
            raise ProtocolError(f"tensor of {BFLOAT16} in byte order {self.byte_order!r}: it is always little-endian")
        if self.order not in ("C", "F") or self.byte_order not in ("<", ">"):
            raise ProtocolError(f"tensor in unknown order {self.order!r} or byte order {self.byte_order!r}")


class _Last:
    """The array that was described, and the description that was read, last: those that follow are mostly the same.
    Each is replaced as a whole, on whatever thread."""

    described: tuple[np.dtype[np.generic], tuple[int, ...], TensorMeta, bool] | None = None
    """With whether its elements are shown by a cast."""
    read: tuple[TensorMeta, np.dtype[np.generic], int] | None = None


def describe(array: Array) -> TensorMeta:
    """The TensorMeta of a numpy array as it would travel.

    Raises:
        InvalidValue: the dtype has no place on the wire.
    """
    dtype, last = array.dtype, _Last.described
    if last is not None and last[0] is dtype and last[1] == array.shape and array.flags.c_contiguous:
        return last[2]
    meta = _describe(array, dtype)
    if meta.order == "C":
        _Last.described = dtype, array.shape, meta, dtype in _CAST and array.size > 0
    return meta


def describe_flat(array: Array) -> tuple[TensorMeta, memoryview]:
    """`describe` and `flat_bytes` at once, which most arrays are like the one before for."""
    last = _Last.described
    if last is not None and last[3] and last[0] is array.dtype and last[1] == array.shape and array.flags.c_contiguous:
        return last[2], memoryview(array).cast("B")  # type: ignore[arg-type]
    return describe(array), flat_bytes(array)


def _describe(array: Array, dtype: np.dtype[np.generic]) -> TensorMeta:
    known = _KNOWN.get(dtype)
    if known is None:
        if dtype.name != BFLOAT16:
            raise InvalidValue("array of dtype", str(dtype), _refusal(dtype))
        known = (BFLOAT16, "<")
    flags = array.flags
    fortran = flags.f_contiguous and not flags.c_contiguous
    return TensorMeta(known[0], array.shape, "F" if fortran else "C", known[1])


def _refusal(dtype: np.dtype[np.generic]) -> str:
    if dtype.hasobject:
        return "object arrays cannot be sent, because reading them would need pickle; send numbers, or a list or dict"
    return f"cannot be sent; convert it to one of {', '.join(DTYPES)}, {BFLOAT16}"


def flat_bytes(array: Array) -> memoryview:
    """The elements of an array in memory order, without a copy when it is contiguous in C or Fortran order."""
    if array.dtype in _CAST and array.size and array.flags.c_contiguous:
        return memoryview(array).cast("B")  # type: ignore[arg-type]
    flags = array.flags
    if not (flags.c_contiguous or flags.f_contiguous):
        array = np.ascontiguousarray(array)
    flat = array if array.ndim == 1 else array.reshape(-1, order="A")
    return flat.view(np.uint8).data if flat.size else memoryview(b"")


def read_tensor(meta: TensorMeta, payload: Buffer) -> Array:
    """An array over the payload's memory; writable when the payload is.

    Raises:
        ProtocolError: the payload does not fit the description.
        InvalidValue: a bfloat16 tensor, and the package ml_dtypes is not installed.
    """
    last = _Last.read
    if (
        last is not None
        and (meta is last[0] or meta == last[0])
        and type(payload) is memoryview
        and payload.nbytes == last[2]
    ):
        array: Array = np.frombuffer(payload, last[1])
        return array if array.shape == meta.shape else array.reshape(meta.shape)
    meta.check()
    flat = np.frombuffer(payload, np.uint8)
    if meta.nbytes != flat.nbytes:
        raise ProtocolError(f"tensor {meta.dtype}{list(meta.shape)} has {meta.nbytes} bytes, its payload {flat.nbytes}")
    if meta.dtype != BFLOAT16 and meta.order == "C" and meta.byte_order == "<" and meta.nbytes:
        _Last.read = meta, DTYPES[meta.dtype], meta.nbytes
    return view_tensor(meta, flat)


def view_tensor(meta: TensorMeta, flat: npt.NDArray[np.uint8]) -> Array:
    """As `read_tensor`, of a description that has been checked and bytes of the right length."""
    if meta.dtype == BFLOAT16:
        typed: Array = flat.view(_bfloat16())
    else:
        typed = flat.view(_READ[meta.dtype, ">" if meta.byte_order == ">" else "<"])
    return typed.reshape(meta.shape, order="F") if meta.order == "F" else typed.reshape(meta.shape)


def _bfloat16() -> np.dtype[np.generic]:
    try:
        import ml_dtypes
    except ImportError as error:
        raise InvalidValue(
            "tensor of dtype",
            BFLOAT16,
            "numpy has no bfloat16 by itself; pip install ml_dtypes, or send float16 or float32",
        ) from error
    return cast("np.dtype[np.generic]", np.dtype(ml_dtypes.bfloat16))


def as_array(value: object) -> Array | None:
    """A numpy array over the memory of anything that is an array, without a copy where that is possible.

    Takes numpy arrays and scalars, torch tensors (also bfloat16, and ones that require a gradient), objects with
    `__dlpack__`, `__array_interface__`, `__cuda_array_interface__` or the buffer protocol; what is on a device is
    copied to the host (broker/devices). `bytes` and `bytearray` are not arrays here.

    Returns:
        The array, or None when the value is none of these.

    Raises:
        InvalidValue: a masked array, whose mask has no place on the wire, or an array on a device that cannot be read.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):
        # Only here, because numpy imports np.ma when it is asked for it, which takes 20 ms.
        if isinstance(value, np.ma.MaskedArray):
            raise InvalidValue(
                "array of type", "MaskedArray", "the mask cannot be sent; send its filled() or its parts"
            )
        # A subclass may not take the shapes that an array takes (numpy.matrix has two axes, always).
        return np.asarray(value)
    if isinstance(value, np.generic) and not isinstance(value, (str, bytes)):
        return np.asarray(value)
    if value is None or isinstance(value, (bool, int, float, str, bytes, bytearray, list, tuple, dict)):
        return None
    if type(value).__module__.partition(".")[0] == "torch":
        return _from_torch(value)
    if devices.is_device_array(value):
        return devices.to_host(value)
    if hasattr(value, "__dlpack__"):
        return cast(Array, np.from_dlpack(value))
    if hasattr(value, "__array_interface__"):
        return np.asarray(value)
    try:
        return np.asarray(memoryview(value))  # type: ignore[arg-type]
    except TypeError:
        return None


def _from_torch(value: object) -> Array | None:
    import torch

    if not isinstance(value, torch.Tensor):
        return None
    try:
        tensor = value.detach().resolve_conj().resolve_neg()
        wide = tensor.dtype != torch.bfloat16
        if tensor.is_cuda and not devices.problem():
            host = devices.to_host(tensor)
            return host if wide else host.view(_bfloat16())
        if tensor.is_cuda:
            devices.copied_otherwise(tensor.nbytes, devices.problem())
        tensor = tensor.cpu()
        return cast(Array, tensor.numpy() if wide else tensor.contiguous().view(torch.int16).numpy().view(_bfloat16()))
    except (RuntimeError, TypeError) as error:
        # Sparse, quantized, without data, or of a dtype that numpy does not have.
        raise InvalidValue("tensor of", f"{value.dtype} on {value.device}", f"cannot be sent: {error}") from error
