"""Local SGD and DiLoCo: the arithmetic, the same bits everywhere, overlap, and ranks that are lost or come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest

import clients
from tests.clients.ranks import PATIENCE_S, all_together, connect_rank, embedded_url, running

RANKS = 3
EVERY = 4


@pytest.fixture
def url() -> str:
    return embedded_url()


def parameters_of(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"weight": random.normal(size=(3, 2)), "bias": random.normal(size=2)}


def move(parameters: dict[str, np.ndarray], rank: int, step: int) -> None:
    """An inner step that differs from rank to rank and depends on the parameters, as one of training does."""
    for array in parameters.values():
        array -= 0.1 * (array - rank) + 0.01 * step


def flat(parameters: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in parameters.values()])


class Rank:
    """A rank that trains until some outer steps are made."""

    def __init__(self, url: str, rank: int, world_size: int = RANKS, seed: int | None = None) -> None:
        self.rank = rank
        self.bus = connect_rank(url, f"rank-{rank}")
        self._world_size = world_size
        self.group: clients.Group | None = None
        self.parameters = parameters_of(rank if seed is None else seed)
        self.anchors: dict[int, np.ndarray] = {}
        self.numbers: list[int] = []
        self.changes: list[clients.GenerationChangedError] = []

    def join(self) -> clients.Group:
        self.group = self.bus.group("outer", world_size=self._world_size, rank=self.rank, timeout_s=PATIENCE_S)
        return self.group

    def train(
        self,
        outer_steps: int,
        kind: type[clients.LocalSGD] = clients.LocalSGD,
        hook: Callable[[int], None] = lambda number: None,
        **options: object,
    ) -> Rank:
        local = kind(
            self.join(), self.parameters, every=EVERY, on_change=self.changes.append, timeout_s=PATIENCE_S, **options
        )
        for number in local.steps(outer_steps):
            self.anchors.setdefault(local.outer_steps, flat(local.anchor))
            self.numbers.append(number)
            hook(number)
            move(self.parameters, self.rank, number)
        self.anchors[local.outer_steps] = flat(local.anchor)
        return self


def expected(
    outer_steps: int, rate: float, momentum: float, ranks: tuple[int, ...] = tuple(range(RANKS))
) -> np.ndarray:
    """The anchor by the paper's algorithm, in one process. All begin with rank 0's parameters."""
    anchor, velocity = flat(parameters_of(0)), np.zeros(8)
    for outer in range(outer_steps):
        gradient = np.zeros(8)
        for rank in ranks:
            local = {"all": anchor.copy()}
            for inner in range(EVERY):
                move(local, rank, outer * EVERY + inner)
            gradient += (anchor - local["all"]) / len(ranks)
        velocity = momentum * velocity + gradient
        anchor = anchor - rate * (gradient + momentum * velocity)
    return anchor


@pytest.mark.parametrize(
    ("kind", "rate", "momentum"), [(clients.LocalSGD, 1.0, 0.0), (clients.DiLoCo, 0.7, 0.9)], ids=["local", "diloco"]
)
def test_outer_steps_are_those_of_the_paper_and_have_the_same_bits_on_all_ranks(
    url: str, kind: type[clients.LocalSGD], rate: float, momentum: float
) -> None:
    ranks = all_together(*(lambda rank=rank: Rank(url, rank).train(5, kind) for rank in range(RANKS)))
    for rank in ranks:
        np.testing.assert_allclose(rank.anchors[5], expected(5, rate, momentum), rtol=1e-10)
        assert flat(rank.parameters).tobytes() == ranks[0].anchors[5].tobytes()
        assert rank.numbers == list(range(5 * EVERY))
    for outer in range(6):
        assert len({rank.anchors[outer].tobytes() for rank in ranks}) == 1


def test_with_a_delay_the_anchors_agree_and_what_was_moved_meanwhile_is_kept(url: str) -> None:
    ranks = all_together(*(lambda rank=rank: Rank(url, rank).train(5, delay=2) for rank in range(RANKS)))
    for outer in range(6):
        assert len({rank.anchors[outer].tobytes() for rank in ranks}) == 1
    # Each has made two steps of its own since the last outer gradient: the parameters differ, the anchors do not.
    assert len({flat(rank.parameters).tobytes() for rank in ranks}) == RANKS
    assert all(len(rank.numbers) == 5 * EVERY + 2 for rank in ranks)


def test_a_delay_applies_the_mean_to_the_parameters_of_before(url: str) -> None:
    (rank,) = all_together(lambda: Rank(url, 0, world_size=1).train(1, delay=1))
    alone = parameters_of(0)
    for number in range(EVERY):
        move(alone, 0, number)
    # One rank alone: the mean is its own gradient, so nothing but the order of the sums is changed by the meeting.
    np.testing.assert_allclose(rank.anchors[1], flat(alone), rtol=1e-10)


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("dies_at", [2 * EVERY, 2 * EVERY + EVERY - 1])
def test_a_rank_that_is_lost_before_an_outer_step_is_not_in_it_and_the_others_make_it(
    url: str, delay: int, dies_at: int
) -> None:
    ranks = [Rank(url, rank) for rank in range(RANKS)]

    def die(number: int) -> None:
        if number == dies_at:
            ranks[1].bus.close()

    with running() as start:
        dying = start(lambda: ranks[1].train(5, hook=die, delay=delay))
        others = [start(lambda rank=rank: rank.train(5, delay=delay)) for rank in (ranks[0], ranks[2])]
        first, second = [other.result(PATIENCE_S) for other in others]
        with pytest.raises(clients.ConnectionClosed):
            dying.result(PATIENCE_S)
    for outer in range(6):
        assert first.anchors[outer].tobytes() == second.anchors[outer].tobytes()
    assert [change.lost_ranks for change in first.changes] == [[1]]
    if not delay:
        anchor = first.anchors[2]
        gradient = np.zeros(8)
        for rank in (0, 2):
            local = {"all": anchor.copy()}
            for inner in range(EVERY):
                move(local, rank, 2 * EVERY + inner)
            gradient += (anchor - local["all"]) / 2
        np.testing.assert_allclose(first.anchors[3], anchor - gradient, rtol=1e-10)


@pytest.mark.parametrize("kind", [clients.LocalSGD, clients.DiLoCo], ids=["local", "diloco"])
@pytest.mark.parametrize("newcomer", [0, 1])
@pytest.mark.parametrize(("delay", "compression"), [(0, None), (1, None), (1, "int8")])
def test_a_newcomer_gets_the_anchor_and_does_not_thin_the_step_that_is_under_way(
    url: str, delay: int, compression: str | None, newcomer: int, kind: type[clients.LocalSGD]
) -> None:
    stays = 1 - newcomer
    ranks = [Rank(url, rank, 2) for rank in range(2)]
    coming = Rank(url, newcomer, 2, seed=77)
    joined: list[Future[Rank]] = []
    outer_steps = 60
    options: dict[str, object] = {"delay": delay, "compression": compression}

    def die(number: int) -> None:
        if number == EVERY + 1:
            ranks[newcomer].bus.close()

    def invite(number: int) -> None:
        if number == 3 * EVERY and not joined:
            joined.append(start(lambda: coming.train(outer_steps, kind, **options)))
            with clients.connect(url) as watcher, watcher.subscribe("$sys/groups/outer", replay="all") as events:
                while [event := events.next(PATIENCE_S).value, event["generation"]][1] < 3:
                    continue

    with running() as start:
        dying = start(lambda: ranks[newcomer].train(outer_steps, kind, hook=die, **options))
        veteran = start(lambda: ranks[stays].train(outer_steps, kind, hook=invite, **options)).result(PATIENCE_S)
        with pytest.raises(clients.ConnectionClosed):
            dying.result(PATIENCE_S)
        new = joined[0].result(PATIENCE_S)
    # It came while the veteran made the fourth outer step; with a delay the third may have been under way still.
    first = min(new.anchors)
    assert first == 4 if not delay else first in (3, 4)
    for outer in range(first, outer_steps + 1):
        assert new.anchors[outer].tobytes() == veteran.anchors[outer].tobytes()
    if not delay and kind is clients.LocalSGD:
        # That step is of the veteran alone: the newcomer has not moved, and does not count.
        local = {"all": veteran.anchors[3].copy()}
        for inner in range(EVERY):
            move(local, stays, 3 * EVERY + inner)
        np.testing.assert_allclose(veteran.anchors[4], local["all"], rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"every": 0}, "every"), ({"every": 4, "delay": 4}, "from 0 to 3"), ({"every": 4, "delay": -1}, "delay")],
)
def test_impossible_intervals_are_refused(url: str, options: dict[str, int], problem: str) -> None:
    with clients.connect(url) as bus, pytest.raises(clients.InvalidValue, match=problem):
        clients.LocalSGD(bus.group("outer", world_size=1), parameters_of(), **options)


def test_whoever_comes_after_the_last_outer_step_is_told_so(url: str) -> None:
    ranks = [Rank(url, rank, 2) for rank in range(2)]
    all_together(*(lambda rank=rank: rank.train(2) for rank in ranks))
    ranks[1].bus.close()
    newcomer = Rank(url, 1, 2)
    with pytest.raises(clients.GroupFinishedError):
        newcomer.train(2)
    assert newcomer.numbers == []


@pytest.mark.parametrize("kind", [clients.LocalSGD, clients.DiLoCo], ids=["local", "diloco"])
@pytest.mark.parametrize("compression", [None, "int8"])
@pytest.mark.parametrize(
    ("delay", "cut_at"),
    [(0, 2 * EVERY), (0, 3 * EVERY - 1), (2, 3 * EVERY), (2, 3 * EVERY + 1), (0, 6 * EVERY - 1), (2, 6 * EVERY + 1)],
    ids=["between", "before-reducing", "under-way", "before-applying", "last", "last-before-applying"],
)
def test_a_rank_that_has_lost_its_place_joins_again_and_has_the_same_anchors(
    url: str, delay: int, cut_at: int, compression: str | None, kind: type[clients.LocalSGD]
) -> None:
    ranks = [Rank(url, rank) for rank in range(RANKS)]
    cuts: list[int] = []
    back = threading.Event()

    def cut(number: int) -> None:
        if number == cut_at and not cuts:
            cuts.append(number)
            assert ranks[1].group is not None
            ranks[1].group.leave()

    def stay(number: int) -> None:
        # Not to come to the end without it.
        if number == 6 * EVERY - 1 + delay:
            assert back.wait(PATIENCE_S)

    def rejoin() -> clients.Group:
        group = ranks[1].join()
        back.set()
        return group

    all_together(
        lambda: ranks[0].train(6, kind, stay, delay=delay, compression=compression),
        lambda: ranks[1].train(6, kind, cut, delay=delay, compression=compression, rejoin=rejoin),
        lambda: ranks[2].train(6, kind, stay, delay=delay, compression=compression),
    )
    assert cuts == [cut_at]
    assert ranks[0].changes
    # Between the cut and its return an outer step may have been made without it, of which it does not know the anchor.
    for outer, anchor in ranks[1].anchors.items():
        assert anchor.tobytes() == ranks[0].anchors[outer].tobytes() == ranks[2].anchors[outer].tobytes()
    assert max(ranks[0].anchors) == max(ranks[2].anchors) == 6


def test_a_lost_place_ends_the_loop_of_whoever_does_not_say_how_to_join_again(url: str) -> None:
    rank = Rank(url, 0, 1)

    def cut(number: int) -> None:
        assert rank.group is not None
        rank.group.leave()

    with pytest.raises(clients.ConnectionClosed):
        rank.train(2, hook=cut)


@pytest.mark.parametrize("compression", ["top-k:0.125", "int8"])
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("of_the_group", [False, True], ids=["of-the-call", "of-the-group"])
def test_what_compression_loses_of_an_outer_gradient_is_in_a_later_one(
    url: str, compression: str, delay: int, of_the_group: bool
) -> None:
    outer_steps, drift = 40, np.array([1.0, 0.001, 0.25, 0.3, 0.5, 0.002, 0.4, 0.2])

    def train(rank: int) -> np.ndarray:
        array = np.zeros(8)
        group = connect_rank(url, f"rank-{rank}").group(
            "outer", world_size=2, rank=rank, timeout_s=PATIENCE_S, compression=compression if of_the_group else "none"
        )
        local = clients.LocalSGD(
            group, {"all": array}, every=EVERY, delay=delay, compression=None if of_the_group else compression
        )
        for _ in local.steps(outer_steps):
            array += drift / EVERY
        return local.anchor["all"].copy()

    first, second = all_together(lambda: train(0), lambda: train(1))
    assert first.tobytes() == second.tobytes()
    # Of each element's way only the last few outer steps are still to be sent: of all, one of eight goes in each.
    np.testing.assert_allclose(first, outer_steps * drift, atol=10 * max(drift))
    assert (first > 0).sum() >= 6
    lost = outer_steps * drift - first
    assert lost.sum() < 0.15 * outer_steps * drift.sum()


def test_compression_is_passed_on(url: str) -> None:
    asked: list[object] = []

    class Recording(clients.Group):
        def all_reduce(self, *arguments: object, compression: object = None, **options: object) -> object:
            asked.append(compression)
            return super().all_reduce(*arguments, **options)

    with clients.connect(url) as bus:
        group = bus.group("outer", world_size=1)
        group.__class__ = Recording
        local = clients.DiLoCo(group, parameters_of(), every=1, compression="int8")
        assert local.step()
    assert asked == ["int8"]
