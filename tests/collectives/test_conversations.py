"""Members and their group together: every kind, op, dtype and size against numpy, and failures from end to end."""

from __future__ import annotations

import numpy as np
import pytest

from broker.collectives.claims import ITEM_BYTES, Claim, CollectiveKind, ReduceOp
from broker.collectives.effects import RefusalKind
from broker.collectives.member import MemberOperation
from broker.errors import BrokerError, CollectiveMismatchError, GenerationChangedError, RankTimeoutError
from tests.collectives.harness import CHUNK_BYTES, SECOND_NS, Cluster, claim, start
from tests.collectives.test_reduce import DTYPES, PAIRS, expected, random_arrays

RANKS = 3
SIZES = ["empty", "one element", "one chunk", "one chunk and an element", "many chunks"]


def elements_of(size: str, dtype: str) -> int:
    """How many elements make up this size; many chunks are more than the window of rounds."""
    chunk = CHUNK_BYTES // ITEM_BYTES[dtype]
    return {
        "empty": 0,
        "one element": 1,
        "one chunk": chunk,
        "one chunk and an element": chunk + 1,
        "many chunks": 20 * chunk + 3,
    }[size]


def run(cluster: Cluster, its_claim: Claim, arrays: list[np.ndarray]) -> list[bytes]:
    """The operation on all ranks, to its end; what `finish` returns on each."""
    operations = [start(cluster.member(rank + 1), its_claim, array) for rank, array in enumerate(arrays)]
    cluster.settle()
    return [bytes(operation.finish()) for operation in operations]


def error_of(operation: MemberOperation) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        operation.finish()
    return caught.value


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("op", "dtype"), PAIRS)
def test_all_reduce_leaves_the_bits_of_numpy_in_the_array_of_every_rank(op: ReduceOp, dtype: str, size: str) -> None:
    arrays = random_arrays(dtype, elements_of(size, dtype), RANKS)
    total = expected(op, arrays).tobytes()
    cluster = Cluster(RANKS, seed=len(size)).formed()
    results = run(cluster, claim(op=op, dtype=dtype, shape=arrays[0].shape), arrays)
    assert results == [total] * RANKS
    assert [array.tobytes() for array in arrays] == [total] * RANKS


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("op", "dtype"), PAIRS)
def test_reduce_scatter_gives_every_rank_its_slice_of_what_numpy_gives(op: ReduceOp, dtype: str, size: str) -> None:
    rows = elements_of(size, dtype)
    arrays = [array.reshape(RANKS * rows, 2) for array in random_arrays(dtype, RANKS * rows * 2, RANKS)]
    before = [array.copy() for array in arrays]
    cluster = Cluster(RANKS, seed=len(size)).formed()
    its_claim = claim(CollectiveKind.REDUCE_SCATTER, op, dtype=dtype, shape=arrays[0].shape)
    shards = np.split(expected(op, arrays), RANKS)
    assert run(cluster, its_claim, arrays) == [shard.tobytes() for shard in shards]
    assert [array.tobytes() for array in arrays] == [array.tobytes() for array in before]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_gather_gives_every_rank_the_arrays_of_all(dtype: str, size: str) -> None:
    arrays = random_arrays(dtype, elements_of(size, dtype), RANKS)
    gathered = b"".join(array.tobytes() for array in arrays)
    its_claim = claim(CollectiveKind.ALL_GATHER, None, dtype=dtype, shape=arrays[0].shape)
    assert run(Cluster(RANKS, seed=len(size)).formed(), its_claim, arrays) == [gathered] * RANKS


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("root", range(RANKS))
def test_broadcast_leaves_the_array_of_the_root_everywhere(root: int, dtype: str, size: str) -> None:
    arrays = random_arrays(dtype, elements_of(size, dtype), RANKS)
    sent = arrays[root].tobytes()
    its_claim = claim(CollectiveKind.BROADCAST, None, root, dtype=dtype, shape=arrays[0].shape)
    run(Cluster(RANKS, seed=len(size)).formed(), its_claim, arrays)
    assert [array.tobytes() for array in arrays] == [sent] * RANKS


@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_groups_of_any_size_reduce(ranks: int) -> None:
    arrays = random_arrays("float32", 100, ranks)
    total = expected(ReduceOp.MEAN, arrays).tobytes()
    assert run(Cluster(ranks).formed(), claim(op=ReduceOp.MEAN, shape=(100,)), arrays) == [total] * ranks


def test_a_barrier_lets_nobody_through_before_the_last_has_come() -> None:
    cluster = Cluster(RANKS).formed()
    first = [cluster.member(session).start(Claim.barrier(SECOND_NS)) for session in (1, 2)]
    cluster.settle()
    assert [operation.done for operation in first] == [False, False]
    last = cluster.member(3).start(Claim.barrier(SECOND_NS))
    cluster.settle()
    assert [operation.done and operation.error is None for operation in [*first, last]] == [True] * 3


def test_a_result_is_the_same_on_every_run_whatever_the_order_of_arrival() -> None:
    results = set()
    for seed in range(10):
        arrays = random_arrays("float32", 1000, RANKS)
        results |= set(run(Cluster(RANKS, seed=seed).formed(), claim(shape=(1000,)), arrays))
    assert len(results) == 1


def test_many_operations_in_progress_end_in_their_own_arrays() -> None:
    cluster = Cluster(2).formed()
    count = 150
    arrays = {(rank, number): np.full(20, number + rank, np.float32) for rank in range(2) for number in range(count)}
    operations = {
        (rank, number): start(cluster.member(rank + 1), claim(shape=(20,)), array)
        for (rank, number), array in arrays.items()
    }
    cluster.settle()
    for (rank, number), operation in operations.items():
        operation.finish()
        assert arrays[rank, number].tolist() == [2 * number + 1] * 20


def test_a_mismatch_fails_on_every_rank_with_the_claims_of_all_and_changes_no_array() -> None:
    cluster = Cluster(RANKS).formed()
    arrays = [np.ones(4, np.float32), np.ones(40, np.float32), np.ones(4, np.float32)]
    operations = [start(cluster.member(rank + 1), claim(shape=array.shape), array) for rank, array in enumerate(arrays)]
    cluster.settle()
    for operation in operations:
        error = error_of(operation)
        assert isinstance(error, CollectiveMismatchError)
        assert error.claims == {rank: claim(shape=array.shape).describe() for rank, array in enumerate(arrays)}
    assert all((array == 1).all() for array in arrays)
    assert run(cluster, claim(), [np.ones(4, np.float32) for _ in range(RANKS)])


def test_a_rank_that_comes_after_a_mismatch_is_told_as_well() -> None:
    cluster = Cluster(RANKS).formed()
    early = [
        cluster.member(1).start(Claim.barrier(9 * SECOND_NS)),
        start(cluster.member(2), claim(), np.ones(4, np.float32)),
    ]
    cluster.settle_with_time()
    late = start(cluster.member(3), claim(), np.ones(4, np.float32))
    cluster.settle()
    assert [type(error_of(operation)) for operation in [*early, late]] == [CollectiveMismatchError] * 3
    assert str(error_of(late)) == str(error_of(early[0]))


def test_a_missing_rank_is_named_on_every_rank_and_to_itself_when_it_comes() -> None:
    cluster = Cluster(RANKS).formed()
    array = np.ones(4, np.float32)
    early = [start(cluster.member(session), claim(), array) for session in (1, 3)]
    cluster.settle_with_time()
    late = start(cluster.member(2), claim(), array)
    cluster.settle()
    for operation in [*early, late]:
        error = error_of(operation)
        assert isinstance(error, RankTimeoutError)
        assert (error.missing_ranks, error.timeout_s) == ([1], 1.0)
    assert array.tolist() == [1] * 4


def test_a_rank_lost_halfway_fails_the_operation_and_the_survivors_go_on_without_it() -> None:
    cluster = Cluster(RANKS).formed()
    arrays = [np.full(16 * 40, rank, np.float32) for rank in range(RANKS)]
    its_claim = claim(op=ReduceOp.MEAN, shape=arrays[0].shape)
    operations = [start(cluster.member(rank + 1), its_claim, array) for rank, array in enumerate(arrays)]
    for _ in range(100):
        cluster.step()
    cluster.lose(2)
    cluster.settle()
    for rank in (0, 2):
        error = error_of(operations[rank])
        assert isinstance(error, GenerationChangedError)
        assert (error.generation, error.lost_ranks, error.ranks) == (2, [1], [0, 2])
        assert (arrays[rank] == rank).all()
    again = [start(cluster.member(rank + 1), its_claim, arrays[rank]) for rank in (0, 2)]
    cluster.settle()
    for operation in again:
        operation.finish()
    assert (arrays[0] == 1).all()
    assert (arrays[2] == 1).all()


def test_a_restarted_rank_takes_part_after_every_survivor_has_been_told() -> None:
    cluster = Cluster(2).formed()
    cluster.lose(2)
    cluster.join(3)
    cluster.settle()
    assert cluster.member(3).rank == 1
    with pytest.raises(GenerationChangedError):
        cluster.member(1).start(Claim.barrier(SECOND_NS))
    arrays = [np.ones(4, np.float32), np.ones(4, np.float32)]
    operations = [start(cluster.member(session), claim(), array) for session, array in zip((1, 3), arrays, strict=True)]
    cluster.settle()
    assert [np.frombuffer(operation.finish(), np.float32).tolist() for operation in operations] == [[2] * 4] * 2


def test_joiners_that_wait_in_vain_are_refused_and_the_group_dissolves() -> None:
    cluster = Cluster(3)
    cluster.join(1)
    cluster.join(2)
    cluster.settle_with_time()
    refusals = [seat.refused.kind for seat in cluster.seats.values() if seat.refused is not None]
    assert refusals == [RefusalKind.TIMEOUT] * 2
    assert cluster.dissolved == 1


def test_all_leave_and_the_group_dissolves() -> None:
    cluster = Cluster(2).formed()
    cluster.leave(1)
    cluster.leave(2)
    assert cluster.dissolved == 1
