"""Tensors: every dtype and layout there and back, and the ones that are refused."""

from __future__ import annotations

import importlib.util
from contextlib import suppress

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidValue, ProtocolError
from broker.protocol.tensors import (
    BFLOAT16,
    DIMENSIONS_MAX,
    DTYPES,
    TensorMeta,
    as_array,
    describe,
    flat_bytes,
    read_tensor,
)

ALL_DTYPES = [*DTYPES.values(), np.dtype(ml_dtypes.bfloat16)]
BIG_ENDIAN = [dtype.newbyteorder(">") for dtype in DTYPES.values() if dtype.itemsize > 1]
BASE = np.arange(-12, 12).reshape(2, 3, 4)
LAYOUTS = {
    "C": BASE,
    "F": np.asfortranarray(BASE),
    "transposed": BASE.T,
    "sliced": BASE[:, ::2, 1:],
    "reversed": BASE[::-1, :, ::-1],
    "middle axis moved": np.moveaxis(BASE, 1, 0),
    "broadcast": np.broadcast_to(BASE[0, 0], (5, 4)),
    "one element": BASE[:1, :1, :1],
    "scalar": np.array(7),
    "empty": np.empty((0,)),
    "empty middle axis": np.empty((3, 0, 2)),
    "empty F": np.empty((3, 0, 2), order="F"),
    "one axis": np.arange(9),
    "sliced axis": np.arange(9)[::3],
    "32 axes": np.zeros((1,) * 31 + (2,)),
}


def there_and_back(array: np.ndarray) -> np.ndarray:
    meta = msgspec.msgpack.decode(msgspec.msgpack.encode(describe(array)), type=TensorMeta)
    return read_tensor(meta, bytearray(flat_bytes(array)))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dtype_in_every_layout_comes_back(dtype: np.dtype, layout: str) -> None:
    array = LAYOUTS[layout].astype(dtype)
    if layout in ("transposed", "F"):
        array = np.asfortranarray(array)
    back = there_and_back(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


@pytest.mark.parametrize("dtype", BIG_ENDIAN, ids=str)
def test_big_endian_arrays_keep_their_byte_order(dtype: np.dtype) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    meta = describe(array)
    back = there_and_back(array)
    assert (meta.byte_order, meta.dtype) == (">", dtype.newbyteorder("=").name)
    assert back.dtype == dtype
    assert (back == array).all()


@pytest.mark.parametrize("layout", ["sliced", "reversed", "middle axis moved", "broadcast", "sliced axis"])
def test_a_view_that_is_not_contiguous_travels_in_c_order(layout: str) -> None:
    array = LAYOUTS[layout]
    assert describe(array).order == "C"
    assert bytes(flat_bytes(array)) == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(("layout", "order"), [("C", "C"), ("F", "F"), ("transposed", "F"), ("one axis", "C")])
def test_a_contiguous_array_goes_as_it_lies_in_memory_without_a_copy(layout: str, order: str) -> None:
    array = LAYOUTS[layout].copy(order="K")
    flat = flat_bytes(array)
    assert describe(array).order == order
    assert np.shares_memory(np.frombuffer(flat, np.uint8), array)
    assert (flat.ndim, flat.format, len(flat), flat.nbytes) == (1, "B", array.nbytes, array.nbytes)
    assert (there_and_back(array) == array).all()


def test_the_result_lies_over_the_payload_and_is_writable_as_the_payload_is() -> None:
    payload = bytearray(np.arange(4, dtype="float32").tobytes())
    array = read_tensor(TensorMeta("float32", (2, 2)), payload)
    array[0, 0] = 9
    assert payload[:4] == np.float32(9).tobytes()
    read_only = read_tensor(TensorMeta("float32", (2, 2)), bytes(payload))
    assert not read_only.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        read_only[0, 0] = 1


def test_a_read_only_array_can_be_sent() -> None:
    array = np.arange(4.0)
    array.flags.writeable = False
    assert (there_and_back(array) == array).all()


def test_a_payload_that_is_not_aligned_can_be_read() -> None:
    payload = memoryview(b"x" + np.arange(3.0).tobytes())[1:]
    assert read_tensor(TensorMeta("float64", (3,)), payload).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([object()]), "pickle"),
        (np.array([{"a": 1}, None]), "pickle"),
        (np.zeros(2, [("a", "O")]), "pickle"),
        (np.array(["text"]), "convert it to one of bool, int8"),
        (np.array([b"text"]), "convert it to one of"),
        (np.array(["2024-01-01"], "datetime64[D]"), "convert it to one of"),
        (np.array([1], "timedelta64[s]"), "convert it to one of"),
        (np.zeros(2, [("a", "i4")]), "convert it to one of"),
        (np.zeros(2, "V3"), "convert it to one of"),
        (np.zeros(2, np.longdouble), "convert it to one of"),
        (np.zeros(2, ml_dtypes.float8_e4m3fn), "convert it to one of"),
        (np.zeros(2, ml_dtypes.int4), "convert it to one of"),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_an_array_of_anything_but_numbers_is_refused_saying_what_to_do(array: np.ndarray, words: str) -> None:
    with pytest.raises(InvalidValue, match=words) as caught:
        describe(array)
    assert str(array.dtype) in str(caught.value)


@pytest.mark.parametrize(
    ("meta", "size", "words"),
    [
        (TensorMeta("float128", (1,)), 16, "unknown dtype 'float128'"),
        (TensorMeta("object", (1,)), 8, "unknown dtype 'object'"),
        (TensorMeta("", ()), 0, "unknown dtype ''"),
        (TensorMeta("int8", (2,)), 3, r"int8\[2\] has 2 bytes, its payload 3"),
        (TensorMeta("float64", (2, 3)), 47, "has 48 bytes, its payload 47"),
        (TensorMeta("int8", (-1,)), 0, "impossible shape"),
        (TensorMeta("int8", (-2, -3)), 6, "impossible shape"),
        (TensorMeta("int8", (-5, 0)), 0, "impossible shape"),
        (TensorMeta("int8", (1,) * (DIMENSIONS_MAX + 1)), 1, "33 axes is over the limit of 32"),
        (TensorMeta("int8", (0, 1 << 63)), 0, "impossible shape"),
        (TensorMeta("float64", (0, 1 << 62, 4)), 0, "impossible shape"),
        (TensorMeta("int8", ((1 << 64) - 1,) * 32), 0, "impossible shape"),
        (TensorMeta("int8", (1,), "K"), 1, "unknown order 'K'"),
        (TensorMeta("int8", (1,), "C", "="), 1, "byte order '='"),
        (TensorMeta("bfloat16", (1,), "C", ">"), 2, "always little-endian"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(meta: TensorMeta, size: int, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        read_tensor(meta, bytes(size))


@given(
    st.sampled_from([*DTYPES, BFLOAT16, "object", "V8"]),
    st.lists(st.sampled_from([0, 1, 2, 3, -1, 1 << 31, 1 << 63, (1 << 64) - 1]), max_size=4),
    st.sampled_from("CFA"),
    st.sampled_from("<>="),
    st.integers(0, 40),
)
def test_any_description_is_an_array_or_refused(
    dtype: str, shape: list[int], order: str, byte_order: str, size: int
) -> None:
    meta = TensorMeta(dtype, tuple(shape), order, byte_order)
    with suppress(ProtocolError):
        array = read_tensor(meta, bytes(size))
        assert (array.nbytes, array.shape) == (size, tuple(shape))


def test_a_description_that_was_read_before_is_held_against_each_payload_and_the_next_one_is_checked() -> None:
    meta = TensorMeta("int16", (3,))
    assert read_tensor(meta, np.arange(3, dtype=np.int16).tobytes()).tolist() == [0, 1, 2]
    with pytest.raises(ProtocolError, match="has 6 bytes, its payload 4"):
        read_tensor(TensorMeta("int16", (3,)), bytes(4))
    assert read_tensor(TensorMeta("int16", (3,), byte_order=">"), b"\0\1\0\2\0\3").tolist() == [1, 2, 3]
    with pytest.raises(ProtocolError, match="unknown dtype"):
        read_tensor(TensorMeta("int17", (3,)), bytes(6))
    assert read_tensor(meta, bytes(6)).tolist() == [0, 0, 0]


def test_itemsize_and_nbytes_are_those_of_the_elements() -> None:
    for name, dtype in DTYPES.items():
        assert TensorMeta(name, (3, 2)).nbytes == 6 * dtype.itemsize
    assert TensorMeta(BFLOAT16, (3, 2)).nbytes == 12
    assert TensorMeta("float64", ()).nbytes == 8


# Things that are arrays.


class WithDlpack:
    """An array of another library."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class WithInterface:
    """An array of an older library."""

    def __init__(self, array: np.ndarray) -> None:
        self.__array_interface__ = array.__array_interface__
        self.array = array


@pytest.mark.parametrize("make", [lambda a: a, WithDlpack, WithInterface, memoryview, lambda a: a.view(np.recarray)])
def test_anything_that_is_an_array_is_taken_without_a_copy(make) -> None:
    array = np.arange(6, dtype="int32").reshape(2, 3)
    taken = as_array(make(array))
    assert type(taken) is np.ndarray
    assert np.shares_memory(taken, array)
    assert (taken == array).all()


@pytest.mark.parametrize("value", [np.float32(1.5), np.int8(-3), np.bool_(True), np.complex128(1j)])
def test_numpy_scalars_are_arrays_without_axes(value: np.generic) -> None:
    taken = as_array(value)
    assert (taken.shape, taken.dtype, taken[()]) == ((), value.dtype, value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        1.5,
        "x",
        b"x",
        bytearray(b"x"),
        [1],
        (1,),
        {"a": 1},
        object(),
        range(3),
        np.str_("x"),
        np.bytes_(b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_array_is_none(value: object) -> None:
    assert as_array(value) is None


def test_a_matrix_is_the_array_that_it_is_made_of() -> None:
    matrix = np.arange(4).reshape(2, 2).view(np.matrix)
    taken = as_array(matrix)
    assert len(flat_bytes(taken)) == matrix.nbytes
    assert (there_and_back(taken) == np.arange(4).reshape(2, 2)).all()


def test_a_masked_array_is_refused_because_its_mask_would_be_lost() -> None:
    with pytest.raises(InvalidValue, match="mask"):
        as_array(np.ma.masked_array([1, 2], [True, False]))


def test_an_array_on_a_device_asks_for_cupy() -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("cupy is installed, so nothing is asked for")

    class OnDevice:
        __cuda_array_interface__: dict[str, object] = {}

    with pytest.raises(InvalidValue, match="pip install cupy"):
        as_array(OnDevice())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool", "complex64"])
def test_torch_tensors_are_taken(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    for its in (tensor, tensor.T, tensor[:, ::2]):
        taken = as_array(its)
        assert taken.dtype.name == dtype
        assert (there_and_back(taken).astype("complex64") == its.to(torch.complex64).numpy()).all()
    if dtype == "float32":
        tensor.requires_grad_()
        assert np.shares_memory(as_array(tensor), tensor.detach().numpy())


def test_an_array_is_taken_without_numpy_ma_which_takes_long_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(np, "ma", raising=False)
    monkeypatch.setattr(np, "__getattr__", None)
    array = np.ones(3)
    assert as_array(array) is array
