"""The schedule `hierarchical`: right whatever the hosts, sparing between them, and on all positions alike."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest

from broker.collectives import ring
from broker.collectives.claims import ITEM_BYTES, CollectiveKind, ReduceOp
from broker.collectives.costs import STEPS_MAX, has_hierarchy
from broker.collectives.ring import Engine, Outcome, Plan, Task
from tests.collectives.kind_cases import Case, cut_one
from tests.collectives.processes import PATIENCE_S
from tests.collectives.rings import SECOND_NS, on_threads, tcp_pair
from tests.collectives.stranger import ABORT, HURRY, MEET, PIECE, READY, Cut, Stranger

pytestmark = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine is not compiled")

WORLDS: dict[str, Callable[..., list[Any]]] = {
    "unix": on_threads,
    "tcp": partial(on_threads, lanes=2, make=tcp_pair),
}
HOSTS = ["AABB", "ABAB", "ABBA", "AAB", "ABB", "ABBB", "AABBB", "BABAB", "AABBCC", "ABCCBA", "AAABBCCC", "AAAABBBB"]
ALIKE = ["A", "AB", "AAA", "ABCD"]
"""One host, or one rank on each: there is nothing to be spared."""
LENGTHS = [0, 1, 1025, 30_001, 300_007]
MIB = 1 << 20
SHORTS_BYTES = 128 << 10
"""Arrays of all ranks that are no more travel with the claims (TB_SHORTS_BYTES of ring_engine.h)."""
WORDS_BYTES_MAX = 300
"""What two ranks say to each other in an operation, beside their arrays, each of them."""


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """Runs a function on threads that are connected in one of the ways."""
    return WORLDS[request.param]


def case_of(elements: int, hosts: str, **more: Any) -> Case:
    return Case(CollectiveKind.ALL_REDUCE, elements, len(hosts), schedule="hierarchical", **more)


def run(engine: Engine, case: Case, position: int, *, in_place: bool = False, scratch: bool = False) -> np.ndarray:
    """The result, which is right."""
    begun = case.begun(position, scratch=scratch)
    if in_place:
        begun.target = begun.source
        begun.task = Task(case.plan(), begun.source, begun.source, 60 * SECOND_NS)
    assert engine.run(begun.task) == Outcome.COMMITTED
    assert begun.target is not None
    assert np.array_equal(begun.target, case.result(position))
    return begun.target


@pytest.mark.parametrize("hosts", HOSTS + ALIKE)
def test_all_positions_get_the_sum(world: Callable[..., list[Any]], hosts: str) -> None:
    def work(engine: Engine, position: int) -> None:
        for number, elements in enumerate(LENGTHS):
            case = case_of(elements, hosts)
            run(engine, case, position)
            run(engine, case, position, in_place=True)
            run(engine, case, position, scratch=bool(number % 2))

    world(len(hosts), work, hosts=hosts)


@pytest.mark.parametrize("dtype", [dtype for dtype in ITEM_BYTES if dtype not in ("bool", "bfloat16", "int8_blocks")])
def test_elements_of_every_size(world: Callable[..., list[Any]], dtype: str) -> None:
    ops = [ReduceOp.SUM, ReduceOp.PRODUCT] + ([] if dtype.startswith("complex") else [ReduceOp.MAX])

    def work(engine: Engine, position: int) -> None:
        for op in ops:
            run(engine, case_of(123_457, "AABBB", dtype=dtype, op=op), position)

    world(5, work, hosts="AABBB")


@pytest.mark.parametrize("hosts", ["AABB", "ABBB", "ABCCBA"])
def test_sums_have_the_same_bits_everywhere_and_always(hosts: str) -> None:
    def work(engine: Engine, position: int) -> list[bytes]:
        results = []
        for elements in (1025, 300_000, 300_000):
            array = np.random.default_rng(position).standard_normal(elements).astype(np.float32)
            plan = case_of(elements, hosts).plan()
            assert engine.run(Task(plan, array, array, 60 * SECOND_NS)) == Outcome.COMMITTED
            results.append(array.tobytes())
        return results

    first, *others = on_threads(len(hosts), work, hosts=hosts)
    assert all(other == first for other in others)
    assert first[1] == first[2]
    again, *_ = on_threads(len(hosts), work, lanes=3, make=tcp_pair, hosts=hosts)
    assert again == first


@pytest.mark.parametrize("hosts", ["AABB", "ABB"])
def test_a_mean_is_divided_once(hosts: str) -> None:
    def work(engine: Engine, position: int) -> None:
        array = np.full(70_000, 0.1 * (position + 1), np.float32)
        plan = case_of(70_000, hosts, op=ReduceOp.MEAN).plan()
        assert engine.run(Task(plan, array, array, 60 * SECOND_NS)) == Outcome.COMMITTED
        assert np.abs(array - np.float32(0.1 * (len(hosts) + 1) / 2)).max() < 1e-6

    on_threads(len(hosts), work, hosts=hosts)


def test_other_kinds_and_schedules_go_over_the_same_links() -> None:
    def work(engine: Engine, position: int) -> None:
        for _ in range(10):
            run(engine, case_of(300_007, "AABB"), position)
            own = np.full(100_000, position, np.float32)
            whole = np.empty(400_000, np.float32)
            gather = Plan(CollectiveKind.ALL_GATHER, b"g", 4, array_bytes=400_000, schedule="hierarchical")
            assert engine.run(Task(gather, own, whole, 60 * SECOND_NS)) == Outcome.COMMITTED
            assert np.array_equal(whole, np.repeat(np.arange(4, dtype=np.float32), 100_000))
            begun = Case(CollectiveKind.ALL_REDUCE, 300_007, 4, schedule="ring").begun(position)
            assert engine.run(begun.task) == Outcome.COMMITTED
            begun.check(done=True)

    on_threads(4, work, hosts="AABB")


def crossing(hosts: str, schedule: str, elements: int) -> int:
    """Bytes that all positions together have sent to other hosts in an all-reduce."""
    count = len(hosts)
    cuts: list[Cut] = []
    pairs = iter([(first, second) for second in range(count) for first in range(second)])

    def make() -> tuple[socket.socket, socket.socket]:
        first, second = next(pairs)
        if hosts[first] == hosts[second]:
            return socket.socketpair()
        cuts.append(Cut(1 << 40))
        return cuts[-1].ends

    def work(engine: Engine, position: int) -> None:
        begun = Case(CollectiveKind.ALL_REDUCE, elements, count, schedule=schedule).begun(position)
        assert engine.run(begun.task) == Outcome.COMMITTED
        begun.check(done=True)

    on_threads(count, work, make=make, hosts=hosts)
    for cut in cuts:
        cut.close()
    return sum(cut.passed for cut in cuts)


@pytest.mark.parametrize("hosts", ["AABB", "ABAB", "AABBCC", "ABBB", "AABBB"])
def test_each_byte_crosses_between_hosts_once(hosts: str) -> None:
    elements = 1 << 19
    many = len(set(hosts))
    least = 2 * (many - 1) * 4 * elements
    found = crossing(hosts, "hierarchical", elements)
    assert least <= found <= least + 40_000
    assert crossing(hosts, "ring", elements) > 1.2 * found


@pytest.mark.parametrize("hosts", ["AABB", "ABAB", "AABBCC", "ABBB"])
def test_a_short_array_crosses_once_for_each_pair_of_ranks_and_the_next_longer_one_once(hosts: str) -> None:
    count, many = len(hosts), len(set(hosts))
    elements = SHORTS_BYTES // count // 4
    pairs = sum(first != second for first in hosts for second in hosts)
    words_max = pairs * WORDS_BYTES_MAX
    short = crossing(hosts, "hierarchical", elements)
    assert 4 * elements * pairs <= short <= 4 * elements * pairs + words_max
    longer = crossing(hosts, "hierarchical", elements + 1)
    once = 2 * (many - 1) * 4 * (elements + 1)
    assert once <= longer <= once + words_max


@pytest.mark.parametrize("elements", [30_001, 600_011])
@pytest.mark.parametrize("hosts", ["AABB", "ABBB"])
def test_what_is_cancelled_at_any_moment_is_as_it_was_or_done_on_all(hosts: str, elements: int) -> None:
    def work(engine: Engine, position: int) -> list[int]:
        chance, outcomes = random.Random(elements), []
        for each in range(16):
            begun = case_of(elements, hosts).begun(position)
            turns, who = chance.choice([0, 0, 100, 1000, 10_000]), chance.randrange(len(hosts))
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

    first, *others = on_threads(len(hosts), work, hosts=hosts)
    assert all(other == first for other in others)
    assert all(outcome == Outcome.COMMITTED for outcome in first[::4])


@pytest.mark.parametrize("hosts", ["AABB", "ABAB", "ABB"])
@pytest.mark.parametrize("elements", [3000, 150_000])
def test_wherever_a_link_breaks_all_agree_and_nothing_is_half_applied(hosts: str, elements: int) -> None:
    """The link from 0 to 1, which is inside a host or between two."""
    chance = random.Random(f"{hosts} {elements}")
    failed = False
    for _ in range(40):
        cut = Cut(chance.randrange(0, chance.choice([500, 8 * elements + 1000])))
        failed |= cut_one(case_of(elements, hosts), cut, 3, hosts)
        cut.close()
    assert failed


PART_BYTES = 60_032
"""Of an array of 60,000 float32: the first part of a shard of 120,000 bytes; the other part has the rest."""


@pytest.mark.parametrize("seed", range(40))
def test_rubbish_does_no_harm(seed: int) -> None:
    """Many words fit the plan, at the wrong time or with other bytes than they ought to have."""
    choice = random.Random(seed)
    strangers = Stranger(4, "AABB")
    begun = [case_of(60_000, "AABB").begun(0) for _ in range(3)]
    for each in begun:
        strangers.engine.submit(each.task)
    for position, sock in strangers.sockets.items():
        sock.settimeout(0)
        if choice.random() < 0.9:
            strangers.meet(position, b"claim")
    for _ in range(60):
        size = choice.choice([PART_BYTES, PART_BYTES, 120_000 - PART_BYTES, 0, 7])
        kind = choice.choice(
            [PIECE, PIECE, PIECE, PIECE, READY, HURRY, MEET, ABORT] if choice.random() < 0.3 else [PIECE]
        )
        with suppress(OSError):
            strangers.say(
                choice.randrange(1, 4), kind, code=choice.randrange(0, 9), step=choice.choice([0, 0, 1, 2, 3, 4, 5]),
                sequence=choice.choice([1, 1, 1, 2]), body=choice.randbytes(size),
            )  # fmt: skip
    for position in strangers.sockets:
        strangers.hang_up(position)
    for each in begun:
        assert strangers.engine.wait(each.task, PATIENCE_S) not in (Outcome.PENDING, Outcome.COMMITTED)
        each.check(done=False)
    strangers.close()


def test_hosts_that_need_too_many_steps_take_a_ring() -> None:
    hosts = "AAAAAAAABCDEFGHI"
    assert not has_hierarchy(hosts)
    assert STEPS_MAX == 2 * ring.POSITIONS_MAX

    def work(engine: Engine, position: int) -> None:
        run(engine, case_of(5000, hosts), position)

    on_threads(len(hosts), work, hosts=hosts)
