"""What an engine of links remembers of its operations, for another thread to tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from broker.collectives import ring
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.ring import LOG_ENTRIES, Engine, Glance, Outcome, Plan, Task
from tests.collectives.processes import PATIENCE_S
from tests.collectives.rings import SECOND_NS, engines_of, on_threads
from tests.collectives.stranger import READY, Stranger
from tests.collectives.test_ring import all_reduce, begin, ended
from tests.thorough import THOROUGH

pytestmark = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine is not compiled")

GOLDEN = 0x9E3779B97F4A7C15


def stays(sequence: int, thinning: int) -> bool:
    return (sequence * GOLDEN & (1 << 64) - 1) >> (64 - thinning) == 0


def until(engine: Engine, phase: int, waits_for: int | None = None) -> Glance:
    """What an engine is at once it has come so far, and waits for these."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        glance = engine.glance(0, 0)
        if glance.seen == 1 and glance.phase == phase and waits_for in (None, glance.waits_for):
            return glance
    raise AssertionError(glance)


@pytest.fixture
def strangers() -> Iterator[Stranger]:
    each = Stranger(3)
    yield each
    each.close()


@pytest.mark.parametrize("elements", [10, 100_000], ids=["small", "large"])
def test_what_was_done_is_remembered_with_its_moments_and_its_claim(elements: int) -> None:
    before_ns = time.monotonic_ns()

    def work(engine: Engine, position: int) -> Glance:
        assert engine.glance(0, 0).entries == []
        array = np.ones(elements, np.float32)
        for _ in range(3):
            assert engine.run(Task(all_reduce(elements, 3), array, array, 60 * SECOND_NS)) == Outcome.COMMITTED
        assert [each.sequence for each in engine.glance(2, 0).entries] == [3]
        return engine.glance(0, 0)

    for glance in on_threads(3, work):
        assert glance.begun == 3
        assert [each.sequence for each in glance.entries] == [1, 2, 3]
        last_ns = before_ns
        for entry in glance.entries:
            assert (entry.status, entry.claim) == (Outcome.COMMITTED, b"claim")
            assert last_ns <= entry.began_ns <= entry.ended_ns <= glance.now_ns
            last_ns = entry.ended_ns


def test_of_an_operation_that_takes_long_it_is_known_where_it_is_and_for_whom_it_waits(strangers: Stranger) -> None:
    engine = strangers.engine
    task, _ = begin(engine, 10, positions=3)
    glance = until(engine, 0)
    assert (glance.begun, glance.waits_for, glance.received_bytes) == (1, 0b110, 0)
    assert [(each.sequence, each.status) for each in glance.entries] == [(1, Outcome.PENDING)]
    strangers.meet(2, b"claim", bytes(40))
    until(engine, 0, 0b010)
    strangers.meet(1, b"claim", bytes(40))
    strangers.say(1, READY)
    assert until(engine, 2, 0b100).received_bytes > 80
    strangers.say(2, READY)
    assert ended(engine, task) == Outcome.COMMITTED


def test_while_arrays_move_it_waits_for_the_one_whose_bytes_are_next(strangers: Stranger) -> None:
    engine = strangers.engine
    task, _ = begin(engine, 300_000, positions=3)
    for position in (1, 2):
        strangers.meet(position, b"claim")
    glance = until(engine, 1)
    assert glance.waits_for == 0b100, "the left neighbour of position 0 is position 2"
    engine.end()
    assert ended(engine, task) == Outcome.OVER
    assert [each.status for each in engine.glance(0, 0).entries] == [Outcome.OVER]


@pytest.mark.parametrize(("positions", "expected"), [(3, 0b010), (4, 0b100), (8, 0b10000)])
def test_by_halving_it_waits_for_its_partner_in_the_step_that_is_next(positions: int, expected: int) -> None:
    others = Stranger(positions)
    task, _ = begin(others.engine, 20_000, positions)
    for position in range(1, positions):
        others.meet(position, b"claim")
    assert until(others.engine, 1).waits_for == expected
    others.engine.end()
    assert ended(others.engine, task) == Outcome.OVER
    others.close()


def test_a_failure_is_remembered_with_who_was_missing(strangers: Stranger) -> None:
    engine = strangers.engine
    task, _ = begin(engine, 10, positions=3, timeout_s=1.0)
    strangers.meet(1, b"claim", bytes(40))
    assert ended(engine, task) == Outcome.MISSING
    (entry,) = engine.glance(0, 0).entries
    assert (entry.status, entry.positions, entry.timeout_ns) == (Outcome.MISSING, 0b100, SECOND_NS)


def test_what_was_in_doubt_is_remembered_as_it_is_settled() -> None:
    stranger = Stranger()
    task, array = begin(stranger.engine, 1)
    stranger.meet(1, b"claim", array.tobytes())
    stranger.hear_until(READY)
    stranger.engine.end()
    assert ended(stranger.engine, task) == Outcome.UNDECIDED
    assert stranger.engine.glance(0, 0).entries[0].status == Outcome.UNDECIDED
    stranger.engine.settle(task, committed=True)
    assert stranger.engine.glance(0, 0).entries[0].status == Outcome.COMMITTED
    stranger.close()


def run_many(engine: Engine, count: int, thinning: int) -> list[int]:
    """Which of many operations an engine remembers."""
    array, plan = np.ones(2, np.float32), all_reduce(2, 2)
    engine.glance(0, thinning)
    for _ in range(count):
        assert engine.run(Task(plan, array, array, 60 * SECOND_NS)) == Outcome.COMMITTED
    glance = engine.glance(0, thinning)
    assert glance.begun == count
    return [each.sequence for each in glance.entries]


def test_of_many_operations_the_newest_are_remembered() -> None:
    def work(engine: Engine, position: int) -> list[int]:
        return run_many(engine, 200, 0)

    for found in on_threads(2, work):
        assert found == list(range(201 - LOG_ENTRIES, 201))


def test_of_fewer_all_positions_remember_the_same_whatever_share_of_them() -> None:
    def work(engine: Engine, position: int) -> list[int]:
        return run_many(engine, 2000, 5 + position)

    first, second = ({*found} - {2000} for found in on_threads(2, work))
    assert first == {sequence for sequence in range(1, 2000) if stays(sequence, 5)}
    assert second == {sequence for sequence in range(1, 2000) if stays(sequence, 6)}
    assert second < first
    # Each of twenty buckets of a step is among them.
    assert {sequence % 20 for sequence in first} == set(range(20))


def test_whoever_looks_sees_whole_entries_also_while_they_are_written() -> None:
    claims = [bytes([letter]) * length for letter, length in ((97, 508), (98, 3), (99, 100))]
    plans = [
        Plan(CollectiveKind.ALL_REDUCE, claim, 2, op=ReduceOp.SUM, dtype="float32", array_bytes=8) for claim in claims
    ]
    over = threading.Event()
    engines = engines_of(2)
    found: list[int] = []

    def look() -> None:
        while not over.is_set():
            glance = engines[0].glance(0, 0)
            assert len({each.sequence for each in glance.entries}) == len(glance.entries)
            for entry in glance.entries:
                assert entry.claim == claims[entry.sequence % 3]
                assert entry.status == Outcome.PENDING or entry.began_ns <= entry.ended_ns <= glance.now_ns
            found.append(len(glance.entries))

    def work(engine: Engine) -> None:
        array = np.ones(2, np.float32)
        for number in range(1, 3001 if THOROUGH else 1001):
            engine.run(Task(plans[number % 3], array, array, 60 * SECOND_NS))

    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    looking = threading.Thread(target=look)
    for thread in (looking, *threads):
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    over.set()
    looking.join(PATIENCE_S)
    assert max(found) >= LOG_ENTRIES - 1
    for engine in engines:
        engine.close()
