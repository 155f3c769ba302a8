"""reduce, gather, scatter and all_to_all over links: right, straight, and on all positions alike whatever breaks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from broker.collectives import ring
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.ring import Engine, Outcome, Task
from tests.collectives.kind_cases import KINDS, Begun, Case, cut_one
from tests.collectives.processes import ATTEMPTS, PATIENCE_S
from tests.collectives.rings import SECOND_NS, on_threads, tcp_pair
from tests.collectives.stranger import ABORT, MEET, PIECE, READY, Cut, Stranger

pytestmark = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine is not compiled")

WORLDS: dict[str, Callable[..., list[Any]]] = {
    "unix": on_threads,
    "tcp": partial(on_threads, lanes=3, make=tcp_pair),
}
LENGTHS = [0, 1, 1000, 1025, 30_001, 70_001, 200_003]
"""Elements of a part: in MEET, of one piece, and of several."""
LONG = 200_003
PIECE_BYTES = 256 << 10


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """Runs a function on threads that are connected in one of the ways."""
    return WORLDS[request.param]


@pytest.mark.parametrize("positions", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_every_position_gets_what_is_its_own(
    world: Callable[..., list[Any]], kind: CollectiveKind, positions: int
) -> None:
    roots = range(positions) if kind is not CollectiveKind.ALL_TO_ALL else [0]

    def work(engine: Engine, position: int) -> None:
        for elements in LENGTHS:
            for root in roots:
                begun = Case(kind, elements, positions, root).begun(position, scratch=bool(root % 2))
                assert engine.run(begun.task) == Outcome.COMMITTED
                begun.check(done=True)

    world(positions, work)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "int64", "complex128"])
@pytest.mark.parametrize("kind", KINDS)
def test_elements_of_every_size(world: Callable[..., list[Any]], kind: CollectiveKind, dtype: str) -> None:
    ops = [ReduceOp.SUM, ReduceOp.PRODUCT] if kind is CollectiveKind.REDUCE else [ReduceOp.SUM]

    def work(engine: Engine, position: int) -> None:
        for op in ops:
            for elements in (5, 40_001):
                begun = Case(kind, elements, 3, 1, dtype, op).begun(position)
                assert engine.run(begun.task) == Outcome.COMMITTED
                begun.check(done=True)

    world(3, work)


@pytest.mark.parametrize("elements", [9, 123_457])
def test_a_reduce_may_be_in_place_and_its_mean_is_divided_once(world: Callable[..., list[Any]], elements: int) -> None:
    def work(engine: Engine, position: int) -> None:
        array = np.full(elements, 0.1 * (position + 1), np.float32)
        its_plan = Case(CollectiveKind.REDUCE, elements, 4, 2, op=ReduceOp.MEAN).plan()
        task = Task(its_plan, array, array if position == 2 else None, 60 * SECOND_NS)
        assert engine.run(task) == Outcome.COMMITTED
        assert np.abs(array - np.float32(0.25 if position == 2 else 0.1 * (position + 1))).max() < 1e-6

    world(4, work)


def test_kinds_of_all_lengths_in_a_row_keep_the_links_in_step(world: Callable[..., list[Any]]) -> None:
    chance = random.Random(3)
    cases = [Case(chance.choice(KINDS), chance.choice(LENGTHS), 4, chance.randrange(4)) for _ in range(60)]

    def work(engine: Engine, position: int) -> None:
        begun = [case.begun(position) for case in cases]
        for each in begun:
            engine.submit(each.task)
        for each in begun:
            assert engine.wait(each.task, 30.0) == Outcome.COMMITTED
            each.check(done=True)

    world(4, work)


@pytest.mark.parametrize("elements", [600, 30_000, LONG])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cancelled_at_any_moment_is_as_it_was_or_done_on_all(
    world: Callable[..., list[Any]], kind: CollectiveKind, elements: int
) -> None:
    def work(engine: Engine, position: int) -> list[int]:
        chance, outcomes = random.Random(elements), []
        for each in range(16):
            begun = Case(kind, elements, 3, chance.randrange(3)).begun(position)
            turns, who = chance.choice([0, 0, 100, 1000, 10_000]), chance.randrange(3)
            engine.submit(begun.task)
            if who == position and each % 4:
                for _ in range(turns):
                    if begun.task.status:
                        break
                engine.cancel(begun.task)
            assert engine.wait(begun.task, 20.0) in (Outcome.COMMITTED, Outcome.INTERRUPTED)
            outcomes.append(begun.task.status)
            begun.check(done=begun.task.status == Outcome.COMMITTED)
        return outcomes

    first, second, third = world(3, work)
    assert first == second == third
    assert all(outcome == Outcome.COMMITTED for outcome in first[::4])


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_is_a_mismatch(world: Callable[..., list[Any]], kind: CollectiveKind) -> None:
    def work(engine: Engine, position: int) -> list[list[int]]:
        missing = []
        for elements in (1, 70_001):
            case = Case(kind, elements, 3)
            task = Task(case.plan(impossible=True), case.source(position), case.target(position), 60 * SECOND_NS)
            assert engine.run(task) == Outcome.MISMATCH
            missing.append(task.positions)
        return missing

    # Who is late by more than a moment, on a busy machine, is not among them. That is not so each time.
    assert any(world(3, work) == [[[0, 1, 2]] * 2] * 3 for _ in range(ATTEMPTS))


@pytest.mark.parametrize("elements", [1, 70_001])
def test_kinds_that_are_mixed_up_name_their_claims(world: Callable[..., list[Any]], elements: int) -> None:
    def work(engine: Engine, position: int) -> dict[int, bytes]:
        case = Case(KINDS[position], elements, 4)
        source, target = case.source(position), case.target(position)
        task = Task(case.plan(claim=str(case.kind).encode()), source, target, 1000 * SECOND_NS)
        assert engine.run(task) == Outcome.MISMATCH
        claims = task.claims()
        again = Case(CollectiveKind.GATHER, elements, 4, 3).begun(position)
        assert engine.run(again.task) == Outcome.COMMITTED
        again.check(done=True)
        return claims

    claims = {position: str(kind).encode() for position, kind in enumerate(KINDS)}
    assert any(world(4, work) == [claims] * 4 for _ in range(ATTEMPTS))


# Links that break.


@pytest.mark.parametrize("positions", [2, 3, 4])
@pytest.mark.parametrize("elements", [1, 3000, 30_000, 70_001])
@pytest.mark.parametrize("kind", KINDS)
def test_wherever_a_link_breaks_all_agree_and_nothing_is_half_applied(
    kind: CollectiveKind, positions: int, elements: int
) -> None:
    chance = random.Random(f"{kind} {positions} {elements}")
    failed = False
    for _ in range(25):
        case = Case(kind, elements, positions, chance.randrange(2))
        cut = Cut(chance.randrange(0, chance.choice([500, 8 * elements + 1000])))
        failed |= cut_one(case, cut, 3)
        cut.close()
    assert failed


# What is said to whom.


@pytest.fixture
def strangers() -> Iterator[Stranger]:
    each = Stranger(3)
    yield each
    each.close()


def meet_all(strangers: Stranger, rows: dict[int, bytes] | None = None) -> None:
    for position in (1, 2):
        strangers.meet(position, b"claim", (rows or {}).get(position, b""))


def submitted(strangers: Stranger, case: Case) -> Begun:
    """Position 0's task, begun."""
    begun = case.begun(0)
    strangers.engine.submit(begun.task)
    return begun


def test_a_small_array_goes_to_the_root_alone(strangers: Stranger) -> None:
    begun = submitted(strangers, Case(CollectiveKind.GATHER, 100, 3, 2))
    assert begun.source is not None
    assert strangers.hear_until(MEET, 1).body == b"claim"
    assert strangers.hear_until(MEET, 2).body == b"claim" + begun.source.tobytes()
    meet_all(strangers)
    for position in (1, 2):
        strangers.say(position, READY)
    assert strangers.engine.wait(begun.task, PATIENCE_S) == Outcome.COMMITTED


@pytest.mark.parametrize("kind", [CollectiveKind.SCATTER, CollectiveKind.ALL_TO_ALL])
def test_of_a_small_array_each_gets_its_part_alone(strangers: Stranger, kind: CollectiveKind) -> None:
    begun = submitted(strangers, Case(kind, 100, 3))
    assert begun.source is not None
    for position in (1, 2):
        part = begun.source[100 * position : 100 * (position + 1)]
        assert strangers.hear_until(MEET, position).body == b"claim" + part.tobytes()


@pytest.mark.parametrize("kind", [CollectiveKind.GATHER, CollectiveKind.REDUCE])
def test_pieces_go_straight_to_whom_they_are_for(strangers: Stranger, kind: CollectiveKind) -> None:
    """A reduce goes from position 2, which is behind the root, over 0 to the root."""
    begun = submitted(strangers, Case(kind, 30_000, 3, 1))
    assert begun.source is not None
    meet_all(strangers)
    if kind is CollectiveKind.REDUCE:
        strangers.say(2, PIECE, body=begun.source.tobytes())
    due = begun.source if kind is CollectiveKind.GATHER else 2 * begun.source
    assert strangers.hear_until(PIECE, 1).body == due.tobytes()
    assert [strangers.hear(2).kind for _ in range(2)] == [MEET, READY]
    for position in (1, 2):
        strangers.say(position, READY)
    assert strangers.engine.wait(begun.task, PATIENCE_S) == Outcome.COMMITTED
    begun.check(done=True)


def test_long_parts_of_an_all_to_all_go_one_after_the_other(strangers: Stranger) -> None:
    case = Case(CollectiveKind.ALL_TO_ALL, LONG, 3)
    begun = submitted(strangers, case)
    meet_all(strangers)
    heard = 0
    while heard < 4 * LONG:
        heard += len(strangers.hear_until(PIECE, 1).body)
    # What position 2 has for this one has not come, so nothing has gone to it.
    strangers.engine.cancel(begun.task)
    assert strangers.engine.wait(begun.task, PATIENCE_S) == Outcome.INTERRUPTED
    assert [strangers.hear(2).kind for _ in range(2)] == [MEET, ABORT]
    begun.check(done=False)


LIES: dict[str, tuple[Case, Callable[[Stranger], object]]] = {
    "an array for another": (
        Case(CollectiveKind.GATHER, 1, 3, 2), lambda each: meet_all(each, {1: bytes(4)}),
    ),
    "no array for the root": (Case(CollectiveKind.REDUCE, 1, 3), meet_all),
    "all in place of a part": (
        Case(CollectiveKind.ALL_TO_ALL, 1, 3), lambda each: meet_all(each, {1: bytes(12), 2: bytes(4)}),
    ),
    "a piece from who is not the root": (
        Case(CollectiveKind.SCATTER, LONG, 3, 1),
        lambda each: (meet_all(each), each.say(2, PIECE, step=1, size=PIECE_BYTES)),
    ),
    "a piece of another's step": (
        Case(CollectiveKind.GATHER, LONG, 3),
        lambda each: (meet_all(each), each.say(1, PIECE, step=0, size=PIECE_BYTES)),
    ),
    "a piece too many": (
        Case(CollectiveKind.GATHER, 30_000, 3),
        lambda each: (
            meet_all(each),
            each.say(2, PIECE, body=bytes(120_000)),
            each.say(2, PIECE, size=120_000),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_breaks_the_engine(strangers: Stranger, lie: str) -> None:
    case, tell = LIES[lie]
    begun = submitted(strangers, case)
    tell(strangers)
    assert strangers.engine.wait(begun.task, PATIENCE_S) == Outcome.BROKEN
    begun.check(done=False)
