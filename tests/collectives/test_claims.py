"""Claims: their words, what they match, and what is refused."""

from __future__ import annotations

import msgspec
import pytest

from broker import limits
from broker.collectives.claims import INT8_BLOCKS, ITEM_BYTES, Claim, CollectiveKind, ReduceOp, op_problem
from broker.errors import InvalidValue
from tests.collectives.harness import claim


def test_a_claim_is_described_in_words() -> None:
    default = limits.CHUNK_BYTES
    words = claim(shape=(1024, 1024), chunk_bytes=default).describe()
    assert words == "all_reduce sum float32 (1024, 1024)"
    broadcast = claim(CollectiveKind.BROADCAST, None, 3, "bfloat16", (7,), chunk_bytes=default)
    assert broadcast.describe() == "broadcast from rank 3 bfloat16 (7,)"
    assert Claim.barrier(1).describe() == "barrier"
    assert claim().describe() == "all_reduce sum float32 (4,) in chunks of 64 bytes"


def test_claims_match_when_only_their_time_outs_differ() -> None:
    assert claim(timeout_ns=1).matches(claim(timeout_ns=2))


@pytest.mark.parametrize(
    "other",
    [
        claim(CollectiveKind.REDUCE_SCATTER),
        claim(op=ReduceOp.MAX),
        claim(root=0),
        claim(dtype="int32"),
        claim(shape=(2, 2)),
        claim(chunk_bytes=128),
    ],
)
def test_claims_do_not_match_when_anything_else_differs(other: Claim) -> None:
    assert not claim().matches(other)


@pytest.mark.parametrize(("elements", "rounds"), [(0, 1), (1, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_an_array_takes_as_many_rounds_as_it_has_chunks_and_at_least_one(elements: int, rounds: int) -> None:
    counted = claim(shape=(elements,), chunk_bytes=64)
    assert (counted.nbytes, counted.rounds) == (4 * elements, rounds)


def test_a_barrier_has_one_round_of_no_bytes_and_passes_its_check() -> None:
    barrier = Claim.barrier(5)
    barrier.check(1)
    assert (barrier.nbytes, barrier.rounds) == (0, 1)


def test_a_claim_survives_the_wire() -> None:
    sent = claim(CollectiveKind.BROADCAST, None, 1, "complex64", (2, 0, 3))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Claim) == sent


@pytest.mark.parametrize(
    ("lie", "problem"),
    [
        (claim(dtype="float8"), "collectives carry bool"),
        (claim(dtype="object"), "collectives carry bool"),
        (claim(shape=(2, -1)), "negative axis"),
        (claim(shape=(2**62,)), "more than any memory"),
        (claim(shape=(0, 2**62)), "more than any memory"),
        (claim(shape=(1,) * 33), "number of axes 33: at most 32"),
        (claim(CollectiveKind.BARRIER, None, shape=(1,)), "carries no array"),
        (claim(CollectiveKind.REDUCE_SCATTER, shape=()), "needs one"),
        (claim(root=1), "has no root"),
        (claim(CollectiveKind.BROADCAST, None), "from 0 to 3"),
        (claim(CollectiveKind.BROADCAST, None, -1), "from 0 to 3"),
        (claim(CollectiveKind.BROADCAST, None, 4), "from 0 to 3"),
        (claim(CollectiveKind.BROADCAST, ReduceOp.SUM, 0), "does not reduce"),
        (claim(CollectiveKind.ALL_GATHER), "does not reduce"),
        (claim(op=None), "needs one of sum, mean, min, max, product"),
        (claim(dtype="bool"), "use max for or"),
        (claim(op=ReduceOp.MEAN, dtype="int64"), "use sum, or convert the array to a float"),
        (claim(op=ReduceOp.MIN, dtype="complex64"), "has no order"),
        (claim(timeout_ns=0), "must be from 1"),
        (claim(timeout_ns=-1), "must be from 1"),
        (claim(timeout_ns=2**63), "must be from 1"),
        (claim(chunk_bytes=0), "multiple of 16"),
        (claim(chunk_bytes=-16), "multiple of 16"),
        (claim(chunk_bytes=24), "multiple of 16"),
        (claim(chunk_bytes=2 * limits.FRAME_PAYLOAD_BYTES_MAX), "multiple of 16"),
    ],
)
def test_a_claim_that_cannot_be_is_refused_with_the_reason(lie: Claim, problem: str) -> None:
    with pytest.raises(InvalidValue, match=problem):
        lie.check(4)


def test_a_long_lie_is_not_repeated_in_full() -> None:
    for lie in (claim(dtype="x" * 100_000), claim(shape=(1,) * 100_000)):
        with pytest.raises(InvalidValue) as caught:
            lie.check(4)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("op", ReduceOp)
@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_each_dtype_has_the_reductions_that_make_sense_for_it(op: ReduceOp, dtype: str) -> None:
    ordering = op in (ReduceOp.MIN, ReduceOp.MAX)
    if dtype == "bool":
        sensible = ordering
    elif dtype == INT8_BLOCKS:
        sensible = op in (ReduceOp.SUM, ReduceOp.MEAN)
    elif dtype.startswith("complex"):
        sensible = not ordering
    else:
        sensible = op is not ReduceOp.MEAN or "int" not in dtype
    assert (op_problem(op, dtype) is None) == sensible
