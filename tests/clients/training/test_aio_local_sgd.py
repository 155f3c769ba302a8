"""LocalSGD and DiLoCo of the asynchronous client: what test_local_sgd.py asks of the synchronous one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path

import numpy as np
import pytest

import clients
from clients import aio
from tests.clients.ranks import PATIENCE_S, running
from tests.clients.serving import ServingThread
from tests.clients.training import test_local_sgd
from tests.clients.training.test_local_sgd import EVERY, RANKS, expected, flat, move, parameters_of

Hook = Callable[[int], Awaitable[None]]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with ServingThread(f"unix://{tmp_path}/broker.sock") as serving:
        yield serving.url


async def nothing(number: int) -> None:
    """Of an inner step."""


class Rank:
    """A rank that trains until some outer steps are made."""

    def __init__(self, url: str, rank: int, world_size: int = RANKS) -> None:
        self.url = url
        self.rank = rank
        self.world_size = world_size
        self.bus: aio.Client | None = None
        self.group: aio.Group | None = None
        self.parameters = parameters_of(rank)
        self.anchors: dict[int, np.ndarray] = {}
        self.numbers: list[int] = []
        self.changes: list[clients.GenerationChangedError] = []

    async def join(self) -> aio.Group:
        if self.bus is None:
            self.bus = await aio.connect(self.url, name=f"rank-{self.rank}")
        self.group = await self.bus.group("outer", world_size=self.world_size, rank=self.rank, timeout_s=PATIENCE_S)
        return self.group

    async def train(
        self, outer_steps: int, kind: type[aio.LocalSGD] = aio.LocalSGD, hook: Hook = nothing, **options: object
    ) -> Rank:
        try:
            local = await kind(
                await self.join(),
                self.parameters,
                every=EVERY,
                on_change=self.changes.append,
                timeout_s=PATIENCE_S,
                **options,
            )
            async for number in local.steps(outer_steps):
                self.anchors.setdefault(local.outer_steps, flat(local.anchor))
                self.numbers.append(number)
                await hook(number)
                move(self.parameters, self.rank, number)
            self.anchors[local.outer_steps] = flat(local.anchor)
            return self
        finally:
            assert self.bus is not None
            await self.bus.close()


def together(*coroutines: Coroutine[object, object, object]) -> list[object]:
    """Runs them on one loop; an error is returned in its place."""

    async def gathered() -> list[object]:
        return await asyncio.wait_for(asyncio.gather(*coroutines, return_exceptions=True), PATIENCE_S)

    return asyncio.run(gathered())


@pytest.mark.parametrize(
    ("kind", "rate", "momentum"), [(aio.LocalSGD, 1.0, 0.0), (aio.DiLoCo, 0.7, 0.9)], ids=["local", "diloco"]
)
def test_outer_steps_are_those_of_the_paper_and_have_the_same_bits_on_all_ranks(
    url: str, kind: type[aio.LocalSGD], rate: float, momentum: float
) -> None:
    ranks = [Rank(url, rank) for rank in range(RANKS)]
    assert together(*(rank.train(5, kind) for rank in ranks)) == ranks
    for rank in ranks:
        np.testing.assert_allclose(rank.anchors[5], expected(5, rate, momentum), rtol=1e-10)
        assert flat(rank.parameters).tobytes() == ranks[0].anchors[5].tobytes()
        assert rank.numbers == list(range(5 * EVERY))


def test_ranks_of_both_kinds_of_client_train_together(url: str) -> None:
    ranks = [Rank(url, rank) for rank in range(RANKS - 1)]
    blocking = test_local_sgd.Rank(url, RANKS - 1)
    with running() as start:
        other = start(lambda: blocking.train(5, clients.DiLoCo, delay=2))
        assert together(*(rank.train(5, aio.DiLoCo, delay=2) for rank in ranks)) == ranks
        other.result(PATIENCE_S)
    for outer in range(6):
        assert len({rank.anchors[outer].tobytes() for rank in (*ranks, blocking)}) == 1
    assert all(len(rank.numbers) == 5 * EVERY + 2 for rank in (*ranks, blocking))


@pytest.mark.parametrize("delay", [0, 2])
def test_a_rank_that_is_lost_before_an_outer_step_is_not_in_it_and_the_others_make_it(url: str, delay: int) -> None:
    ranks = [Rank(url, rank) for rank in range(RANKS)]

    async def die(number: int) -> None:
        if number == 2 * EVERY + 1:
            assert ranks[1].bus is not None
            await ranks[1].bus.close()

    first, dead, second = together(
        *(rank.train(5, hook=die if rank is ranks[1] else nothing, delay=delay) for rank in ranks)
    )
    assert isinstance(dead, clients.ConnectionClosed)
    assert (first, second) == (ranks[0], ranks[2])
    for outer in range(6):
        assert ranks[0].anchors[outer].tobytes() == ranks[2].anchors[outer].tobytes()
    assert [change.lost_ranks for change in ranks[0].changes] == [[1]]


@pytest.mark.parametrize("delay", [0, 2])
def test_a_rank_that_has_lost_its_place_joins_again_and_has_the_same_anchors(url: str, delay: int) -> None:
    ranks = [Rank(url, rank) for rank in range(RANKS)]
    cuts: list[int] = []

    async def cut(number: int) -> None:
        if number == 2 * EVERY + 1 and not cuts:
            cuts.append(number)
            assert ranks[1].group is not None
            await ranks[1].group.leave()

    async def scenario() -> None:
        back = asyncio.Event()

        async def stay(number: int) -> None:
            # Not to come to the end without it.
            if number == 6 * EVERY - 1 + delay:
                await asyncio.wait_for(back.wait(), PATIENCE_S)

        async def rejoin() -> aio.Group:
            group = await ranks[1].join()
            back.set()
            return group

        await asyncio.gather(
            ranks[0].train(6, hook=stay, delay=delay),
            ranks[1].train(6, hook=cut, delay=delay, rejoin=rejoin),
            ranks[2].train(6, hook=stay, delay=delay),
        )

    asyncio.run(scenario())
    assert cuts == [2 * EVERY + 1]
    assert ranks[0].changes
    for outer, anchor in ranks[1].anchors.items():
        assert anchor.tobytes() == ranks[0].anchors[outer].tobytes() == ranks[2].anchors[outer].tobytes()
    assert max(ranks[0].anchors) == max(ranks[1].anchors) == 6


def test_a_place_that_is_still_taken_is_asked_for_again(url: str) -> None:
    rank, tries = Rank(url, 0, 1), 0

    async def cut(number: int) -> None:
        if number == 1:
            assert rank.group is not None
            await rank.group.leave()

    async def rejoin() -> aio.Group:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise clients.CollectiveError("outer", "rank 0 is taken")
        return await rank.join()

    assert together(rank.train(2, hook=cut, rejoin=rejoin)) == [rank]
    assert tries == 3
    assert max(rank.anchors) == 2


def test_a_rank_whose_step_is_cancelled_leaves_and_the_others_go_on(url: str) -> None:
    ranks = [Rank(url, rank, 2) for rank in range(2)]
    gone = threading.Event()

    async def leaving() -> None:
        rank = ranks[1]
        local = await aio.LocalSGD(await rank.join(), rank.parameters, every=1, timeout_s=PATIENCE_S)
        waiting = asyncio.ensure_future(local.step())
        # The other rank does not come before this one has gone.
        while local._work is None:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert rank.bus is not None
        await rank.bus.close()
        gone.set()

    async def stay(number: int) -> None:
        while not gone.is_set():
            await asyncio.sleep(0.001)

    together(ranks[0].train(3, hook=stay), leaving())
    assert max(ranks[0].anchors) == 3
    assert [change.lost_ranks for change in ranks[0].changes] == [[1]]


def test_a_step_before_the_ranks_have_met_is_refused_and_steps_meet_by_themselves(url: str) -> None:
    async def alone() -> list[int]:
        async with await aio.connect(url) as bus:
            local = aio.LocalSGD(await bus.group("outer", world_size=1), parameters_of(), every=2)
            with pytest.raises(clients.InvalidValue, match="await"):
                await local.step()
            return [number async for number in local.steps(2)]

    assert asyncio.run(alone()) == [0, 1, 2, 3]


def test_impossible_intervals_are_refused(url: str) -> None:
    async def alone() -> None:
        async with await aio.connect(url) as bus:
            group = await bus.group("outer", world_size=1)
            with pytest.raises(clients.InvalidValue, match="from 0 to 3"):
                await aio.DiLoCo(group, parameters_of(), every=4, delay=4)

    asyncio.run(alone())
