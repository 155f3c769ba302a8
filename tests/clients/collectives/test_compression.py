"""Compressed all_reduce: what comes out, what is kept for the next time, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from broker.errors import CollectiveMismatchError, InvalidValue, LimitExceeded
from clients.collectives import compression
from clients.collectives.collective import Prepared
from clients.collectives.compression import Feedback
from tests.collectives.harness import CHUNK_BYTES, Cluster

NAMES = ["float16", "bfloat16", "int8", "top-k:0.25", "top-k:1"]
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "int8": 6e-2, "top-k:1": 1e-6}
"""Of a sum of three normal numbers."""
RANKS = 3


class Ranks:
    """Ranks that reduce through a group in memory."""

    def __init__(self, count: int = RANKS) -> None:
        self.cluster = Cluster(count).formed()
        self.kept = [Feedback() for _ in range(count)]

    def prepare(self, rank: int, array: object, name: str, feedback: str | None, op: str = "sum") -> Prepared:
        codec = compression.codec(name)
        assert codec is not None
        member = self.cluster.member(rank + 1)
        prepared = compression.all_reduce(member, self.kept[rank], array, op, 1.0, None, codec, name, feedback)
        # In rounds as short as the others of these tests.
        return replace(prepared, claim=msgspec.structs.replace(prepared.claim, chunk_bytes=CHUNK_BYTES))

    def all_reduce(
        self, arrays: Sequence[object], name: str, feedback: str | None = None, op: str = "sum"
    ) -> list[object]:
        prepared = [self.prepare(rank, array, name, feedback, op) for rank, array in enumerate(arrays)]
        started = [
            self.cluster.member(rank + 1).start(each.claim, each.contribution, each.target)
            for rank, each in enumerate(prepared)
        ]
        self.cluster.settle()
        return [each.finish(operation.finish) for each, operation in zip(prepared, started, strict=True)]


def normal(shape: int | tuple[int, ...], seed: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("op", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", list(TOLERANCE))
def test_the_result_is_near_the_exact_one_and_has_the_same_bits_everywhere(name: str, dtype: type, op: str) -> None:
    arrays = [normal((3, 41), rank, dtype) for rank in range(RANKS)]
    exact = np.sum(arrays, axis=0) / (RANKS if op == "mean" else 1)
    results = Ranks().all_reduce(arrays, name, op=op)
    assert all(result is array for result, array in zip(results, arrays, strict=True))
    assert len({array.tobytes() for array in arrays}) == 1
    assert np.abs(arrays[0] - exact).max() <= TOLERANCE[name]


def test_top_k_sends_the_largest_and_counts_the_others_as_zero() -> None:
    arrays = [np.array([1, -9, 2, 3], np.float32), np.array([8, 1, -1, 1], np.float32)]
    Ranks(2).all_reduce(arrays, "top-k:0.25")
    assert arrays[0].tolist() == arrays[1].tolist() == [8, -9, 0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_arrays_that_do_not_lie_in_order_are_reduced_where_they_are(name: str) -> None:
    whole = [normal((6, 8), rank) for rank in range(RANKS)]
    before = [array.copy() for array in whole]
    straight = [array[::2, ::-1].T.copy() for array in whole]
    Ranks().all_reduce([array[::2, ::-1].T for array in whole], name)
    Ranks().all_reduce(straight, name)
    for array, old, expected in zip(whole, before, straight, strict=True):
        assert (expected == array[::2, ::-1].T).all()
        assert (array[1::2] == old[1::2]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), ()])
def test_arrays_of_no_and_of_one_element_are_reduced(name: str, shape: tuple[int, ...]) -> None:
    arrays = [np.full(shape, 2.0, np.float32) for _ in range(RANKS)]
    Ranks().all_reduce(arrays, name, "w")
    for array in arrays:
        assert array.shape == shape
        assert np.abs(array - 6.0).max(initial=0) <= 0.05


@pytest.mark.parametrize("name", NAMES)
def test_with_feedback_nothing_is_lost_over_many_steps(name: str) -> None:
    ranks, steps = Ranks(2), 60
    gradients = [normal(90, rank) * np.logspace(-4, 0, 90, dtype=np.float32) for rank in range(2)]
    exact = np.sum(gradients, axis=0, dtype=np.float64)
    total = np.zeros(90)
    for _ in range(steps):
        arrays = [gradient.copy() for gradient in gradients]
        ranks.all_reduce(arrays, name, "w")
        total += arrays[0]
    # What is still kept is at most the size of a step's array; a sum of blocks also goes up and down by chance.
    assert np.abs(total / steps - exact).max() <= 0.1 * np.abs(exact).max()
    if name.startswith("top-k:0"):
        assert (np.sign(total[exact > 1e-3]) >= 0).all()


def test_what_is_kept_is_added_to_the_next_array_of_that_name_only() -> None:
    ranks = Ranks(1)
    for name, expected in (("a", [0, 5]), ("b", [0, 5]), ("a", [6, 0]), ("b", [6, 0])):
        array = np.array([3, 5] if expected == [0, 5] else [3, 4], np.float32)
        ranks.all_reduce([array], "top-k:0.5", name)
        assert array.tolist() == expected, name


def test_a_failed_operation_leaves_array_and_feedback_as_they_were() -> None:
    ranks = Ranks(2)
    first = [np.array([3, 5], np.float32), np.array([0, 1], np.float32)]
    ranks.all_reduce(first, "top-k:0.5", "w")
    array = np.array([1, 2], np.float32)
    prepared = ranks.prepare(0, array, "top-k:0.5", "w")
    operation = ranks.cluster.member(1).start(prepared.claim, prepared.contribution, prepared.target)
    other = ranks.prepare(1, np.ones(2, np.float32), "top-k:1", None)
    ranks.cluster.member(2).start(other.claim, other.contribution, other.target)
    ranks.cluster.settle_with_time()
    with pytest.raises(CollectiveMismatchError, match=r"top-k:0\.5.*top-k:1"):
        prepared.finish(operation.finish)
    assert array.tolist() == [1, 2]

    retried = [array, np.zeros(2, np.float32)]
    ranks.all_reduce(retried, "top-k:0.5", "w")
    assert array.tolist() == [4, 0], "3 was kept of the first array, and 1 added"


def test_shapes_that_become_the_same_number_of_blocks_are_told_apart() -> None:
    ranks = Ranks(2)
    prepared = [ranks.prepare(rank, np.ones(50 + rank, np.float32), "int8", None) for rank in range(2)]
    operations = [
        ranks.cluster.member(rank + 1).start(each.claim, each.contribution, each.target)
        for rank, each in enumerate(prepared)
    ]
    ranks.cluster.settle_with_time()
    with pytest.raises(CollectiveMismatchError, match=r"float32 \(50,\) as int8.*float32 \(51,\) as int8"):
        operations[0].finish()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_short_float_sends_the_largest_it_has_for_a_larger_number_and_keeps_the_rest(name: str) -> None:
    ranks = Ranks(1)
    large = np.float32(1e5) if name == "float16" else np.float32(3.4e38)
    array = np.array([large, 1], np.float32)
    ranks.all_reduce([array], name, "w")
    assert np.isfinite(array).all()
    following = np.zeros(2, np.float32)
    ranks.all_reduce([following], name, "w")
    assert array[0] + following[0] == pytest.approx(large, rel=1e-2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_seen_by_all_and_gone_in_the_next_step(name: str, value: float) -> None:
    ranks = Ranks(2)
    arrays = [np.array([1, value], np.float32), np.ones(2, np.float32)]
    with np.errstate(invalid="ignore"):
        ranks.all_reduce(arrays, name, "w")
    assert not np.isfinite(arrays[0][1])
    arrays = [np.ones(2, np.float32), np.ones(2, np.float32)]
    ranks.all_reduce(arrays, name, "w")
    assert np.isfinite(arrays[0]).all()


@pytest.mark.parametrize(
    "name", ["zip", "", "top-k", "top-k:", "top-k:0", "top-k:1.1", "top-k:nan", "TOP-K:0.1", 8, None]
)
def test_an_unknown_compression_is_refused(name: object) -> None:
    with pytest.raises(InvalidValue, match="is none of none, float16, bfloat16, int8"):
        compression.codec(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("array", "op", "feedback", "problem"),
    [
        (np.ones(2, np.int32), "sum", None, "takes float32 and float64"),
        (np.ones(2, np.float16), "sum", None, "takes float32 and float64"),
        (np.ones(2, np.float32), "max", None, "goes with sum and mean"),
        (np.ones(2, np.float32), "median", None, "goes with sum and mean"),
        (np.ones(2, np.float32), "sum", "", "not empty"),
        (np.ones(2, np.float32), "sum", 7, "not empty"),
        ([1.0, 2.0], "sum", None, "is not an array"),
    ],
)
def test_what_cannot_be_compressed_is_refused(array: object, op: str, feedback: str | None, problem: str) -> None:
    with pytest.raises(InvalidValue, match=problem):
        Ranks(1).prepare(0, array, "int8", feedback, op)


def test_a_name_belongs_to_arrays_of_one_length_and_to_one_operation_at_a_time() -> None:
    ranks = Ranks(1)
    ranks.all_reduce([np.ones(3, np.float32)], "int8", "w")
    with pytest.raises(InvalidValue, match="of an array of 3 elements, not of 4"):
        ranks.prepare(0, np.ones(4, np.float32), "int8", "w")
    ranks.prepare(0, np.ones(3, np.float32), "int8", "w")
    with pytest.raises(InvalidValue, match="in progress"):
        ranks.prepare(0, np.ones(3, np.float32), "int8", "w")


def test_there_is_a_bound_on_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "FEEDBACK_NAMES_MAX", 2)
    kept = Feedback()
    kept.begin("a", 1)
    kept.begin("b", 1)
    with pytest.raises(LimitExceeded, match="feedback_names_max"):
        kept.begin("c", 1)
    assert repr(kept) == "<Feedback names=2 busy=2>"
