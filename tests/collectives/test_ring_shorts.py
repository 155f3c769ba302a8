"""Short arrays over links: they travel whole with the claim, and two rounds are all that an operation takes."""

from __future__ import annotations

import contextlib
import socket

import numpy as np
import pytest

from broker.collectives import ring
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.reduce import accumulate
from broker.collectives.ring import Engine, Outcome, Plan, Task
from tests.collectives.processes import ATTEMPTS
from tests.collectives.rings import SECOND_NS, Pair, on_threads, tcp_pair, unix_pair
from tests.collectives.stranger import ABORT, MEET, PATIENCE_S, READY, Stranger
from tests.collectives.test_engines import small_numbers
from tests.collectives.test_ring import all_reduce, begin, ended

SHORTS_BYTES = 128 << 10
pytestmark = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine is not compiled")


def longest(positions: int) -> int:
    """Bytes of the longest array that is short."""
    return max(SHORTS_BYTES // positions, 4096) // 4 * 4


@pytest.mark.parametrize("schedule", ["auto", "ring", "halving", "hierarchical"])
@pytest.mark.parametrize("positions", [2, 3, 8, 40])
def test_arrays_travel_with_the_claim_while_all_of_them_are_short(positions: int, schedule: str) -> None:
    for more, bytes_with_claim in ((0, longest(positions)), (4, 0)):
        with contextlib.closing(Stranger(positions)) as stranger:
            array = np.ones((longest(positions) + more) // 4, np.float32)
            task = Task(all_reduce(array.size, positions, schedule), array, array, 1000 * SECOND_NS)
            stranger.engine.submit(task)
            for position in range(1, positions):
                assert stranger.hear_until(MEET, position).body == b"claim" + array.tobytes()[:bytes_with_claim]


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32", "complex128"])
@pytest.mark.parametrize("positions", [2, 3, 5, 8])
def test_they_are_added_in_the_order_of_the_ranks_whatever_the_schedule(positions: int, dtype: str) -> None:
    """The same bits as on a board and through the broker."""
    random = np.random.default_rng(positions)
    length = longest(positions) // 16 - 3
    if dtype in ("float32", "float16"):
        given = [random.standard_normal(length).astype(dtype).tobytes() for _ in range(positions)]
    else:
        given = small_numbers(dtype, positions, length)
    expected = bytearray(len(given[0]))
    accumulate(ReduceOp.SUM, given, dtype, positions, expected)

    def work(engine: Engine, position: int) -> None:
        for schedule in ("ring", "halving", "hierarchical"):
            array = bytearray(given[position])
            plan = Plan(
                CollectiveKind.ALL_REDUCE, b"", positions,
                op=ReduceOp.SUM, dtype=dtype, array_bytes=len(array), schedule=schedule,
            )  # fmt: skip
            assert engine.run(Task(plan, array, array, 60 * SECOND_NS)) == Outcome.COMMITTED
            assert array == expected

    on_threads(positions, work, lanes=2, make=tcp_pair)


@pytest.mark.parametrize("positions", [2, 8])
def test_they_come_whole_through_sockets_with_little_room(positions: int) -> None:
    def narrow() -> Pair:
        pair = unix_pair()
        for each in pair:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2000)
        return pair

    lengths = [longest(positions) // 4, 1, longest(positions) // 4 + 1, 777]

    def work(engine: Engine, position: int) -> None:
        for number in range(20):
            array = np.full(lengths[number % 4], position + number, np.float32)
            schedule = ("auto", "ring", "halving")[number % 3]
            task = Task(all_reduce(array.size, positions, schedule), array, array, 30 * SECOND_NS)
            assert engine.run(task) == Outcome.COMMITTED
            assert (array == positions * (positions - 1) // 2 + positions * number).all()

    on_threads(positions, work, lanes=2, make=narrow)


@pytest.mark.parametrize("lengths", [(1, 10_000, 5), (10_000, 10_001, 10_000), (3, 10_000, 300_000), (300_000, 0, 7)])
def test_other_lengths_are_named_and_the_links_go_on(lengths: tuple[int, ...]) -> None:
    """Some of them short and some not: who has sent an array along and who has not must both be understood."""

    def work(engine: Engine, position: int) -> list[dict[int, bytes]]:
        named = []
        for _ in range(3):
            array = np.full(lengths[position], position, np.float32)
            plan = Plan(
                CollectiveKind.ALL_REDUCE, b"%d" % array.size, 3,
                op=ReduceOp.SUM, dtype="float32", array_bytes=array.nbytes,
            )  # fmt: skip
            task = Task(plan, array, array, 60 * SECOND_NS)
            assert engine.run(task) == Outcome.MISMATCH
            assert (array == position).all()
            named.append(task.claims())
            again = np.ones(10_000, np.float32)
            assert engine.run(Task(all_reduce(10_000, 3), again, again, 60 * SECOND_NS)) == Outcome.COMMITTED
            assert (again == 3).all()
        return named

    claims = {each: b"%d" % length for each, length in enumerate(lengths)}
    # Who is late by more than a moment, on a busy machine, is not among them. That is not so each time.
    assert any(on_threads(3, work) == [[claims] * 3] * 3 for _ in range(ATTEMPTS))


def test_who_does_not_read_finds_whole_words_of_few_operations() -> None:
    """What is kept for it is bounded: of those that failed meanwhile the last one, and what its socket has taken."""
    elements = longest(2) // 4
    with contextlib.closing(Stranger(2)) as stranger:
        for _ in range(50):
            task, array = begin(stranger.engine, elements, timeout_s=0.001)
            assert ended(stranger.engine, task) == Outcome.MISSING
            assert (array == 1).all()
        task, array = begin(stranger.engine, elements)
        met, word = [], stranger.hear()
        while word.sequence <= 50:
            assert word.kind in (MEET, ABORT)
            if word.kind == MEET:
                assert word.body == b"claim" + bytes(array)
                met.append(word.sequence)
            word = stranger.hear()
        assert met == sorted(set(met))
        assert len(met) < 50
        assert (word.kind, word.body) == (MEET, b"claim" + array.tobytes())
        stranger.meet(1, b"claim", array.tobytes(), sequence=51)
        assert stranger.hear().kind == READY
        assert (array == 1).all()
        stranger.say(1, READY, sequence=51)
        assert stranger.engine.wait(task, PATIENCE_S) == Outcome.COMMITTED
        assert (array == 2).all()


@pytest.mark.parametrize("more", [-4, 4, 4096, 128 << 10])
def test_an_array_of_another_length_than_claimed_breaks_the_engine(more: int) -> None:
    elements = longest(2) // 4
    with contextlib.closing(Stranger(2)) as stranger:
        task, array = begin(stranger.engine, elements)
        with contextlib.suppress(OSError):
            stranger.meet(1, b"claim", bytes(4 * elements + more))
        assert ended(stranger.engine, task) == Outcome.BROKEN
        assert (array == 1).all()
