"""Values with tensors in them."""

from __future__ import annotations

import struct
from collections import OrderedDict
from contextlib import suppress

import ml_dtypes
import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.buffers import Gathered
from broker.errors import InvalidValue, ProtocolError
from broker.limits import PLACED_BYTES_MIN
from broker.protocol.frames import Content
from broker.protocol.structures import ALIGNMENT_BYTES, TENSOR_EXTENSION
from broker.protocol.tensors import TensorMeta
from broker.protocol.values import decode_value, encode_value


def encoded(value: object) -> bytes:
    content, meta, payload = encode_value(value)
    assert (content, meta) == (Content.STRUCTURE, None)
    return bytes(payload)


def decoded(payload: bytes | memoryview) -> object:
    return decode_value(Content.STRUCTURE, None, payload)


def there_and_back(value: object) -> object:
    return decoded(encoded(value))


def test_a_structure_is_the_value_and_behind_it_the_tensors_in_its_order() -> None:
    first, second = np.array([[1, 2]], ">i2"), np.arange(20.0)
    payload = encoded({"z": first, "step": 3, "a": [second]})
    (length,) = struct.unpack_from("<Q", payload)
    value = msgpack.unpackb(payload[8 : 8 + length])
    assert list(value) == ["z", "step", "a"]
    assert value["step"] == 3
    assert value["z"].code == value["a"][0].code == TENSOR_EXTENSION
    assert msgpack.unpackb(value["z"].data) == {"dtype": "int16", "shape": [1, 2], "byte_order": ">"}
    assert msgpack.unpackb(value["a"][0].data) == {"dtype": "float64", "shape": [20]}
    start = -(-(8 + length) // 64) * 64
    assert payload[8 + length : start] == bytes(start - 8 - length)
    assert payload[start : start + 4] == first.tobytes()
    assert payload[start + 4 : start + 64] == bytes(60)
    assert payload[start + 64 :] == second.tobytes()


LAYOUTS = {
    "C": np.arange(24.0).reshape(2, 3, 4),
    "F": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "strided": np.arange(24.0).reshape(4, 6)[:, ::2],
    "reversed": np.arange(5)[::-1],
    "no axis": np.array(5, "int8"),
    "no element": np.empty((0, 3), "float16"),
    "big-endian": np.arange(3, dtype=">u4"),
    "bool": np.array([True, False]),
    "complex": np.array([1j]),
    "bfloat16": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "read-only": np.frombuffer(b"abcd", "int16"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_array_of_any_layout_comes_back(name: str) -> None:
    array = LAYOUTS[name]
    back = there_and_back({"before": np.zeros(1, "int8"), "it": array, "after": [np.zeros(1, "int8")]})["it"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable
    if name == "F":
        assert back.flags.f_contiguous


def test_keys_keep_their_order_and_their_types() -> None:
    state = {"state": {0: {"momentum": np.zeros(2)}, 1: {"momentum": np.ones(2)}}, "groups": [{"lr": 0.1}], 2.5: None}
    back = there_and_back(state)
    assert list(back) == ["state", "groups", 2.5]
    assert list(back["state"]) == [0, 1]
    assert back["state"][1]["momentum"].tolist() == [1, 1]
    assert back["groups"] == [{"lr": 0.1}]


def test_numpy_scalars_are_plain_numbers_beside_arrays() -> None:
    back = there_and_back([np.float32(1.5), np.zeros(1), np.int64(3)])
    assert (type(back[0]), type(back[2])) == (float, int)


def test_a_dict_of_another_kind_and_a_named_tuple_are_taken() -> None:
    back = there_and_back(OrderedDict(b=np.zeros(1), a=(np.ones(1), {"x": np.ones(1)})))
    assert list(back) == ["b", "a"]
    assert back["a"][1]["x"].tolist() == [1]


def test_a_long_structure_is_not_copied() -> None:
    weights = {f"layer.{number}": np.full(10_000, number) for number in range(5)}
    _, _, payload = encode_value(weights)
    assert isinstance(payload, Gathered)
    for array, part in zip(weights.values(), (part for part in payload.parts if len(part) == 80_000), strict=True):
        assert np.shares_memory(np.frombuffer(part, np.uint8), array)


def test_a_short_structure_is_in_one_place_and_may_change_afterwards() -> None:
    array = np.zeros(10)
    _, _, payload = encode_value({"a": array})
    assert type(payload) is bytes
    assert len(payload) < PLACED_BYTES_MIN
    array[0] = 9
    assert decoded(payload)["a"][0] == 0


def test_arrays_lie_where_the_payload_has_arrived() -> None:
    memory = bytearray(encoded({"a": np.zeros(5000), "b": np.zeros(3)}))
    back = decoded(memoryview(memory))
    memory[-8:] = struct.pack("<d", 2.5)
    assert back["b"].tolist() == [0, 0, 2.5]
    back["a"][:] = 7
    assert memory.count(struct.pack("<d", 7.0)) == 5000


def test_a_state_dict_of_many_long_names_is_one_message() -> None:
    names = [f"model.decoder.layers.{number}.self_attention.query_key_value.weight" for number in range(5000)]
    back = there_and_back({name: np.full(2, number) for number, name in enumerate(names)})
    assert list(back) == names
    assert [int(array[0]) for array in back.values()] == list(range(5000))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_a_state_dict_of_torch_is_taken(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weight = torch.nn.Parameter(torch.arange(6).reshape(2, 3).to(torch.float32), requires_grad=True)
    state = OrderedDict(weight=weight, bias=torch.arange(3).to(getattr(torch, dtype)).t(), step=torch.tensor(7))
    back = there_and_back({"model": state, "epoch": 2})
    assert list(back["model"]) == ["weight", "bias", "step"]
    assert back["model"]["weight"].tolist() == weight.tolist()
    assert back["model"]["bias"].dtype.name == dtype
    assert (back["model"]["step"].shape, back["epoch"]) == ((), 2)


def test_a_tensor_of_torch_that_is_no_array_is_named_by_its_place() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for tensor in (torch.zeros(3, device="meta"), torch.zeros(3).to_sparse(), torch.zeros(3).to(torch.float8_e4m3fn)):
        with pytest.raises(InvalidValue, match=r'^value\["a"\]\[0\]: tensor of .*cannot be sent'):
            encode_value({"a": [tensor], "b": torch.zeros(2)})


class TorchLike:
    """As tensors of torch do, it has no place in MessagePack and says what it is by its methods."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: object) -> object:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def test_whatever_is_an_array_is_a_tensor_inside_as_well() -> None:
    back = there_and_back({"dlpack": TorchLike(np.arange(3)), "buffer": __import__("array").array("d", [1, 2])})
    assert (back["dlpack"].tolist(), back["buffer"].tolist()) == ([0, 1, 2], [1, 2])


def test_too_many_tensors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = encoded([np.zeros(0)] * 4)
    monkeypatch.setattr("broker.protocol.structures.VALUE_TENSORS_MAX", 3)
    with pytest.raises(InvalidValue, match="more than 3: tensors"):
        encode_value([np.zeros(0)] * 4)
    with pytest.raises(ProtocolError, match="more than 3 tensors"):
        decoded(payload)


def made(value: object, *parts: bytes, length: int | None = None) -> bytes:
    """A payload as somebody with bad intentions might make it."""
    data = msgpack.packb(value)
    head = struct.pack("<Q", len(data) if length is None else length) + data
    payload = head + bytes(-len(head) % ALIGNMENT_BYTES)
    for part in parts:
        payload += bytes(-len(payload) % ALIGNMENT_BYTES) + part
    return payload


def tensor(dtype: str = "uint8", shape: object = (2,), code: int = TENSOR_EXTENSION, **more: object) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb({"dtype": dtype, "shape": shape, **more}))


def test_what_is_made_by_hand_is_read() -> None:
    back = decoded(made({"a": tensor(), "b": tensor("int16", (1,))}, b"xy", b"\x01\x00"))
    assert (back["a"].tolist(), back["b"].tolist()) == ([120, 121], [1])
    assert decoded(made([1, 2])[: 8 + 3]) == [1, 2]


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "truncated"),
        (bytes(7), "truncated"),
        (bytes(8), "malformed"),
        (made([1], length=1 << 63), "value ends at"),
        (made([1], length=(1 << 64) - 1), "value ends at"),
        (made([1], length=56), "malformed"),
        (made([1]), "structure of 10 bytes has a payload of 64"),
        (made([tensor()]), "ends at 66, its payload has 64 bytes"),
        (made([tensor()], b"x"), "ends at 66, its payload has 65 bytes"),
        (made([tensor()], b"xyz"), "structure of 66 bytes has a payload of 67"),
        (made([tensor(), tensor()], b"xy"), "ends at 130"),
        (made([tensor(shape=(-2,))], b"xy"), "impossible shape"),
        (made([tensor(shape=(-2, -1))], b"xy"), "impossible shape"),
        (made([tensor(shape=(1 << 63,))], b"xy"), "impossible shape"),
        (made([tensor(shape=(1 << 62, 0, 4))]), "impossible shape"),
        (made([tensor(shape=(1 << 40,))], b"xy"), "ends at"),
        (made([tensor(shape=(1,) * 33)], b"x"), "33 axes"),
        (made([tensor(shape="ab")], b"xy"), "malformed"),
        (made([tensor(shape=(2.0,))], b"xy"), "malformed"),
        (made([tensor("object")], b"xy"), "unknown dtype"),
        (made([tensor(order="X")], b"xy"), "unknown order"),
        (made([tensor(byte_order="=")], b"xy"), "byte order"),
        (made([tensor(code=2)], b"xy"), "unknown type 2"),
        (made([msgpack.ExtType(TENSOR_EXTENSION, b"\xc1")], b"xy"), "malformed"),
        (made([msgpack.ExtType(TENSOR_EXTENSION, b"")], b"xy"), "malformed"),
        (struct.pack("<Q", 64) + b"\x81" + msgpack.packb(tensor()) + b"\x01", "value ends at"),
        (made({"key": 1}).replace(b"\xa3key", b"\x81\x80\x01\x80"), "malformed|hashable"),
        (struct.pack("<Q", 100_000) + b"\x91" * 100_000, "recursion"),
    ],
)
def test_a_damaged_structure_is_refused(payload: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decoded(payload)


def test_a_tensor_as_a_key_is_refused() -> None:
    data = b"\x81" + msgpack.packb(tensor()) + b"\x01"
    head = struct.pack("<Q", len(data)) + data
    with pytest.raises(ProtocolError, match="hashable"):
        decoded(head + bytes(-len(head) % ALIGNMENT_BYTES) + b"xy")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_structure_or_refused(data: bytes) -> None:
    check(data)
    check(struct.pack("<Q", len(data) // 2) + data)


@given(st.integers(0, 3000), st.integers(0, 7))
def test_a_flipped_bit_gives_a_structure_of_the_same_memory_or_is_refused(position: int, bit: int) -> None:
    payload = bytearray(encoded({"a": np.zeros((2, 3)), "b": [np.ones(9, "int8"), "text"], "c": np.zeros((0, 2))}))
    payload[position % len(payload)] ^= 1 << bit
    check(bytes(payload))


META = msgspec.msgpack.encode(TensorMeta("uint8", (1,)))


@given(st.binary(max_size=60), st.binary(max_size=10))
def test_any_description_of_a_tensor_is_an_array_or_refused(data: bytes, elements: bytes) -> None:
    check(made([msgpack.ExtType(TENSOR_EXTENSION, data)], elements))
    check(made([msgpack.ExtType(TENSOR_EXTENSION, META + data)], elements))


def check(data: bytes) -> None:
    with suppress(ProtocolError):
        value = decode_value(Content.STRUCTURE, None, data)
        assert not callable(value)
