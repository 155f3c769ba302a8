"""What is told of a message: a tensor's range and histogram out of a bounded sample, a value cut to a length."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.admin.samples import BINS, SAMPLED_MAX, TEXT_MAX, Sampler, TensorSample, text_of
from broker.errors import ProtocolError
from broker.protocol.frames import Content
from broker.protocol.plain import encode_plain
from broker.protocol.tensors import DTYPES, TensorMeta, describe, flat_bytes
from broker.protocol.values import encode_value


def sample(array: np.ndarray, piece_bytes: int = 1 << 20) -> TensorSample:
    sampler, flat = Sampler(describe(array)), bytes(flat_bytes(array))
    for start in range(0, len(flat), piece_bytes):
        sampler.feed(flat[start : start + piece_bytes])
    return sampler.sample()


def test_of_a_small_tensor_all_elements_are_looked_at() -> None:
    told = sample(np.arange(12, dtype=np.int32).reshape(3, 4))
    assert (told.dtype, told.shape, told.elements, told.sampled) == ("int32", [3, 4], 12, 12)
    assert (told.low, told.high, told.mean) == (0, 11, 5.5)
    assert (sum(told.counts), len(told.counts)) == (12, BINS)
    assert told.deviation == pytest.approx(np.arange(12).std())


def test_of_a_large_one_a_bounded_number_of_elements_spread_over_all_of_it() -> None:
    array = np.arange(1_000_003, dtype=np.float64)
    told = sample(array, 512 * 1024)
    assert SAMPLED_MAX / 2 < told.sampled <= SAMPLED_MAX
    assert told.low == 0
    assert told.high == pytest.approx(1_000_003, rel=1e-3)
    assert max(told.counts) - min(told.counts) <= 2


@given(size=st.integers(0, 40_000), piece_bytes=st.integers(4, 70_000))
def test_it_does_not_matter_in_which_pieces_it_comes(size: int, piece_bytes: int) -> None:
    array = np.arange(size, dtype=np.float32)
    whole, pieces = sample(array), sample(array, piece_bytes - piece_bytes % 4)
    assert whole == pieces


def test_an_element_that_is_split_between_pieces_is_passed_over() -> None:
    told = sample(np.arange(4, dtype=np.float64), 12)
    assert (told.elements, told.sampled, told.low, told.high) == (4, 3, 0, 3)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_dtype_and_byte_order_is_told(dtype: str, order: str) -> None:
    array = np.array([0, 1, 1, 0, 1], dtype=np.dtype(dtype).newbyteorder(order))
    told = sample(array)
    assert (told.dtype, told.low, told.high, told.mean) == (dtype, 0, 1, pytest.approx(0.6))
    assert (told.counts[0], told.counts[-1]) == (2, 3)


def test_bfloat16_needs_no_library() -> None:
    sampler = Sampler(TensorMeta("bfloat16", (2,)))
    sampler.feed(np.array([0x3F80, 0xC000], "<u2").tobytes())
    told = sampler.sample()
    assert (told.dtype, told.low, told.high) == ("bfloat16", -2.0, 1.0)


def test_of_complex_numbers_the_magnitudes_are_told() -> None:
    told = sample(np.array([3 + 4j, 0], np.complex64))
    assert (told.low, told.high) == (0, 5)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    told = sample(np.array([1.0, math.nan, math.inf, -math.inf, 3.0]))
    assert (told.not_finite, told.low, told.high, told.sampled) == (3, 1.0, 3.0, 5)


@pytest.mark.parametrize("array", [np.empty((0, 3)), np.full(5, math.nan)], ids=["empty", "only NaN"])
def test_without_a_finite_element_there_is_no_range(array: np.ndarray) -> None:
    told = sample(array)
    assert (told.low, told.high, told.mean, told.counts) == (None, None, None, [])


@pytest.mark.parametrize(
    "array",
    [
        np.array([-np.finfo(np.float64).max, 0.0, np.finfo(np.float64).max]),
        np.array([0.0, 5e-324]),
        np.array([1.0, np.nextafter(1.0, 2.0)]),
        np.array([7.0, 7.0]),
        np.array([-(2**63), 2**63 - 1]),
    ],
    ids=["widest", "narrowest", "neighbours", "alike", "integers"],
)
def test_extreme_ranges_have_a_histogram_too(array: np.ndarray) -> None:
    told = sample(array)
    assert sum(told.counts) == len(array)
    assert b"NaN" not in msgspec.json.encode(told)


@given(st.lists(st.floats(width=64), max_size=200))
def test_any_floats_can_be_told(numbers: list[float]) -> None:
    told = sample(np.array(numbers))
    finite = [number for number in numbers if math.isfinite(number)]
    assert told.not_finite == len(numbers) - len(finite)
    assert sum(told.counts) == len(finite)
    assert (told.low, told.high) == ((min(finite), max(finite)) if finite else (None, None))


def test_a_tensor_that_lies_about_its_length_is_refused() -> None:
    sampler = Sampler(TensorMeta("float32", (4,)))
    sampler.feed(bytes(12))
    with pytest.raises(ProtocolError, match="has 16 bytes, its payload 12"):
        sampler.sample()


def test_a_tensor_that_cannot_be_is_refused() -> None:
    with pytest.raises(ProtocolError, match="unknown dtype"):
        Sampler(TensorMeta("object", (4,)))
    with pytest.raises(ProtocolError, match="impossible shape"):
        Sampler(TensorMeta("int8", (-1,)))


def shown(value: object) -> str:
    content, _, payload = encode_value(value)
    return text_of(content, bytes(payload))


def test_a_value_is_shown_as_json() -> None:
    assert shown({"step": 1, "loss": 0.5, "names": ["a", None]}) == '{"step":1,"loss":0.5,"names":["a",null]}'


def test_arrays_in_a_value_are_shown_by_dtype_and_shape() -> None:
    assert shown({"weights": np.zeros((2, 3), np.float32)}) == '{"weights":"float32[2, 3]"}'


def test_bytes_are_shown_as_text_if_they_are_text() -> None:
    assert shown(b"some words") == "some words"
    assert shown(b"\x00\x01") == "00 01"
    assert shown(b"") == ""
    assert shown(b"x" * 10_000).endswith("... of 10000 bytes")


def test_long_values_are_cut() -> None:
    assert len(shown("x" * 50_000)) <= TEXT_MAX + 2
    assert shown(list(range(100))).endswith('"... of 100 entries"]')
    assert '"...":"100 entries"' in shown({str(number): number for number in range(100)})
    assert shown("x" * 100_000) == "a value of 100005 bytes"


def test_what_cannot_be_read_says_so() -> None:
    assert text_of(Content.MESSAGEPACK, b"\xc1").startswith("a value that cannot be read: ")
    assert text_of(Content.STRUCTURE, b"\x00" * 20).startswith("a value that cannot be read: ")
    assert text_of(77, b"??").startswith("a value that cannot be read: ")
    deep: object = 1
    for _ in range(30):
        deep = [deep]
    assert "entries" in text_of(Content.MESSAGEPACK, encode_plain(deep))


@given(content=st.integers(0, 255), payload=st.binary(max_size=300))
def test_no_payload_breaks_it(content: int, payload: bytes) -> None:
    assert len(text_of(content, payload)) <= TEXT_MAX + 64
