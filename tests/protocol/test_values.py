"""Values to payloads and back, against the independent `msgpack` package."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidValue, ProtocolError
from broker.limits import VALUE_DEPTH_MAX
from broker.protocol.frames import Content
from broker.protocol.structures import TENSOR_EXTENSION
from broker.protocol.tensors import TensorMeta
from broker.protocol.values import decode_value, encode_value

PLAIN = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1)),
        *(st.floats(allow_nan=False), st.text(), st.binary()),
    ),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=15,
)


def there_and_back(value: object) -> object:
    return decode_value(*encode_value(value))


@given(PLAIN)
def test_plain_values_come_back_and_are_what_msgpack_reads(value: object) -> None:
    content, meta, payload = encode_value(value)
    if isinstance(value, bytes):
        assert (content, payload) == (Content.BYTES, value)
    else:
        assert (content, meta) == (Content.MESSAGEPACK, None)
        assert msgpack.unpackb(payload) == value
        assert decode_value(Content.MESSAGEPACK, None, msgpack.packb(value)) == value
    assert there_and_back(value) == value


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Step:
    number: int = 3


@pytest.mark.parametrize(
    ("value", "comes_back"),
    [
        (datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=1))), datetime(2026, 1, 2, 2, tzinfo=UTC)),
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),
        (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(seconds=3), "PT3S"),
        (Decimal("1.10"), "1.10"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Colour.RED, "red"),
        (Step(), {"number": 3}),
    ],
)
def test_what_messagepack_does_not_have_comes_back_as_documented(value: object, comes_back: object) -> None:
    assert there_and_back(value) == comes_back
    assert there_and_back({"a": [value]}) == {"a": [comes_back]}
    assert there_and_back([np.zeros(1), value])[1] == comes_back


@pytest.mark.parametrize("value", [1 + 2j, Path("/x"), range(3), 1 << 64, -(1 << 63) - 1])
def test_what_has_no_form_on_the_wire_is_refused(value: object) -> None:
    with pytest.raises(InvalidValue, match="cannot be sent"):
        encode_value(value)
    with pytest.raises(InvalidValue, match="cannot be sent"):
        encode_value({"a": [value]})


def test_bytes_stay_bytes_and_are_not_copied() -> None:
    value = b"raw"
    assert encode_value(value) == (Content.BYTES, None, value)
    assert encode_value(value)[2] is value
    assert decode_value(Content.BYTES, None, value) is value
    assert decode_value(Content.BYTES, None, memoryview(value)) == value


def test_a_bytearray_is_copied_so_that_it_may_change_afterwards() -> None:
    value = bytearray(b"raw")
    payload = encode_value(value)[2]
    value[0] = 0
    assert bytes(payload) == b"raw"


def test_an_array_travels_as_its_memory() -> None:
    array = np.arange(6, dtype="float32").reshape(2, 3)
    content, meta, payload = encode_value(array)
    assert (content, meta) == (Content.TENSOR, TensorMeta("float32", (2, 3)))
    assert np.shares_memory(np.frombuffer(payload, np.uint8), array)
    assert (there_and_back(array) == array).all()


@pytest.mark.parametrize("payload", [b"\x01\x02", bytearray(b"\x01\x02"), memoryview(bytearray(b"\x01\x02"))])
def test_an_array_that_was_received_may_be_written_to(payload: bytes) -> None:
    array = decode_value(Content.TENSOR, TensorMeta("uint8", (2,)), payload)
    array[0] = 9
    assert array.tolist() == [9, 2]


def test_a_value_with_an_array_in_it_is_a_structure() -> None:
    array = np.zeros((100, 100), ">i2")
    content, meta, payload = encode_value({"weights": array, "step": 3})
    assert (content, meta) == (Content.STRUCTURE, None)
    back = decode_value(content, meta, bytes(payload))
    assert (back["step"], back["weights"].dtype, back["weights"].shape) == (3, array.dtype, array.shape)


def test_numpy_scalars_inside_are_plain_numbers() -> None:
    value = {"a": np.float32(1.5), "b": np.int64(-3), "c": np.bool_(True), "d": np.float64(2.5), "e": np.uint8(7)}
    back = there_and_back(value)
    assert back == {"a": 1.5, "b": -3, "c": True, "d": 2.5, "e": 7}
    assert [type(item) for item in back.values()] == [float, int, bool, float, int]


@pytest.mark.parametrize("value", [np.str_("text"), np.bytes_(b"raw")])
def test_numpy_strings_are_strings(value: np.generic) -> None:
    assert there_and_back(value) == value
    assert there_and_back([value]) == [value]


def test_a_tuple_comes_back_as_a_list_and_keys_may_be_numbers() -> None:
    assert there_and_back((1, (2, 3))) == [1, [2, 3]]
    assert there_and_back({1: "a", "b": 2}) == {1: "a", "b": 2}


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), -0.0])
def test_unusual_floats_come_back(number: float) -> None:
    assert str(there_and_back([number])[0]) == str(number)
    assert str(there_and_back(float("nan"))) == "nan"


def recursive() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "'object'.*send None, bool, int"),
        ({"a": [object()]}, "'object'"),
        (print, "builtin_function"),
        (1 << 64, "int"),
        ([-(1 << 63) - 1], r"value\[0\] of type 'int'"),
        ("\ud800", "str"),
        (recursive(), "recursion"),
        (np.array([object()]), "pickle"),
        ([np.array([object()])], "pickle"),
        ({"a": np.array(["x"])}, "convert it"),
        (range(3), "range"),
        (1j, "complex"),
        (np.ma.masked_array([1], [True]), "mask"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else type(value).__name__,
)
def test_a_value_without_a_form_on_the_wire_is_refused_saying_which(value: object, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        encode_value(value)


WEIGHTS = {"layer.0": {"bias": np.zeros(3)}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"layer.0": {"bias": np.array([object()])}}, r'^value\["layer\.0"\]\["bias"\]: array of dtype .*pickle'),
        ({"a": [1, (2, object())]}, r'^value\["a"\]\[1\]\[1\]: value of type .object'),
        ([1, {"x": {2: 1 << 64}}], r'^value\[1\]\["x"\]\[2\] of type .int'),
        ({**WEIGHTS, "x": {"y": {(np.complex64(1),): 0}}}, r'^value\["x"\]\["y"\]: key \(.*as keys'),
        ({**WEIGHTS, "x": [np.array(["text"])]}, r'^value\["x"\]\[0\]: array of dtype'),
        ({**WEIGHTS, "x": {np.complex64(1): 0}}, r'^value\["x"\]: key .*as keys'),
        ({**WEIGHTS, "x": {object(): 0}}, r'^value\["x"\]: key <object'),
        ({**WEIGHTS, "x": [np.ma.masked_array([1], [True])]}, r'^value\["x"\]\[0\]: .*mask'),
    ],
)
def test_what_cannot_be_sent_is_named_by_its_place(value: object, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        encode_value(value)


def nested(depth: int, innermost: object) -> object:
    value = innermost
    for level in range(depth):
        value = {"inner": value} if level % 2 else [value]
    return value


def test_a_structure_is_as_deep_as_every_reader_can_read() -> None:
    array = np.arange(3)
    deepest = there_and_back(nested(VALUE_DEPTH_MAX, array))
    for level in reversed(range(VALUE_DEPTH_MAX)):
        deepest = deepest["inner"] if level % 2 else deepest[0]
    assert deepest.tolist() == [0, 1, 2]
    with pytest.raises(InvalidValue, match=f"deeper than the limit of {VALUE_DEPTH_MAX}"):
        encode_value(nested(VALUE_DEPTH_MAX + 1, array))
    with pytest.raises(InvalidValue, match="deeper"):
        encode_value([array, recursive()])


def extension(data: bytes, code: int) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, data))


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (b"\x01\x02", "malformed"),
        (b"\x91" * 100_000, "recursion"),
        (b"\xa1\xff", "(?i)utf-8"),
        (b"\x81\x80\x01", "hashable"),
        (extension(b"x", 5), "unknown type 5"),
        (extension(b"x", TENSOR_EXTENSION), "unknown type 1"),
    ],
)
def test_a_damaged_value_is_refused(payload: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decode_value(Content.MESSAGEPACK, None, payload)


def test_a_tensor_without_a_description_and_unknown_content_are_refused() -> None:
    for content, meta in ((Content.TENSOR, None), (4, None), (255, TensorMeta("uint8", (0,)))):
        with pytest.raises(ProtocolError, match=f"unknown content {content}"):
            decode_value(content, meta, b"")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    check(data)


@given(PLAIN, st.integers(0, 1000), st.integers(0, 7))
def test_a_flipped_bit_gives_a_value_or_is_refused(value: object, position: int, bit: int) -> None:
    payload = bytearray(encode_value({"value": value})[2])
    payload[position % len(payload)] ^= 1 << bit
    check(bytes(payload))


def check(data: bytes) -> None:
    with suppress(ProtocolError):
        value = decode_value(Content.MESSAGEPACK, None, data)
        assert not callable(value)
