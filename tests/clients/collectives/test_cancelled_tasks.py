"""Tasks that are cancelled while they wait in a call of an asynchronous group: the array is theirs again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.collectives import shm
from clients import aio
from tests.clients.serving import ServingThread
from tests.clients.test_groups import PATIENCE_S

Array = np.ndarray
Cancel = Callable[["asyncio.Task[object]"], Awaitable[None]]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with ServingThread(f"unix://{tmp_path}/broker.sock") as serving:
        yield serving.url


@pytest.fixture(params=["shm", "star", "ring"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param != "star" and not shm.AVAILABLE:
        pytest.skip("the engines are not compiled")
    return str(request.param)


@asynccontextmanager
async def two_ranks(url: str, way: str, **options: object) -> AsyncIterator[list[aio.Group]]:
    # Where memory is shared the way is a board.
    shares = way != "ring"
    async with (
        await aio.connect(url, name="a", shared_memory=shares) as first,
        await aio.connect(url, name="b", shared_memory=shares) as second,
    ):
        yield await asyncio.gather(
            *(
                bus.group("dp", world_size=2, rank=rank, timeout_s=PATIENCE_S, schedule=way, **options)
                for rank, bus in enumerate((first, second))
            )
        )


async def cancel_once(task: asyncio.Task[object]) -> None:
    task.cancel()


async def cancel_again_and_again(task: asyncio.Task[object]) -> None:
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)


async def begun(group: aio.Group, operations: int) -> None:
    """Waits until so many operations are under way, by whatever way; of those on an engine the first one has begun."""
    submitted = group._driver._submitted
    while len(group._place.member.pending) + len(submitted) < operations or any(
        not each.task.sequence for each in submitted[:1]
    ):
        await asyncio.sleep(0)


def arrays_of(elements: int, several: bool) -> list[Array]:
    if several:
        return [np.ones(elements, np.float32), np.ones(elements, np.int32)]
    return [np.ones(elements, np.float32)]


@pytest.mark.parametrize("cancel", [cancel_once, cancel_again_and_again], ids=["once", "again and again"])
@pytest.mark.parametrize("elements", [5, 1_000_000])
@pytest.mark.parametrize("several", [False, True], ids=["array", "list"])
def test_a_cancelled_task_gives_its_operation_up_and_has_its_array_back(
    url: str, way: str, several: bool, elements: int, cancel: Cancel
) -> None:
    """Rank 0 is cancelled while it waits for rank 1, and writes to its arrays at once."""

    async def cancelled(group: aio.Group) -> list[Array]:
        arrays = arrays_of(elements, several)
        task = asyncio.ensure_future(group.all_reduce(arrays if several else arrays[0], timeout_s=PATIENCE_S))
        await begun(group, len(arrays))
        await cancel(task)
        with pytest.raises(asyncio.CancelledError):
            await task
        for array in arrays:
            assert (array == 1).all()
            array[:] = 7
        return arrays

    async def told(group: aio.Group) -> None:
        arrays = arrays_of(elements, several)
        with pytest.raises(clients.CollectiveAbortedError) as caught:
            await group.all_reduce(arrays if several else arrays[0], timeout_s=PATIENCE_S)
        assert caught.value.rank == 0
        assert all((array == 1).all() for array in arrays)

    async def scenario() -> None:
        async with two_ranks(url, way) as groups:
            arrays = await cancelled(groups[0])
            await told(groups[1])
            totals = [np.ones(3), np.ones(3)]
            await asyncio.gather(*(each.all_reduce(total) for each, total in zip(groups, totals, strict=True)))
            assert [total.tolist() for total in totals] == [[2.0] * 3] * 2
            for array in arrays:
                assert (array == 7).all(), "something has written to it"

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def test_a_task_that_is_cancelled_at_any_moment_has_its_array_back_whole(url: str, way: str) -> None:
    """Of an operation that all have begun: it has ended well on both ranks, or was given up on both."""
    elements = 1_000_000

    async def scenario() -> None:
        async with two_ranks(url, way) as groups:
            for moment in range(1, 41):
                arrays = [np.ones(elements, np.float32) for _ in groups]
                tasks = [
                    asyncio.ensure_future(group.all_reduce(array, timeout_s=PATIENCE_S))
                    for group, array in zip(groups, arrays, strict=True)
                ]
                for _ in range(moment):
                    await asyncio.sleep(0)
                tasks[0].cancel()
                await asyncio.wait(tasks[:1])
                found, arrays[0][:] = arrays[0].copy(), 7
                await asyncio.wait(tasks)
                assert (arrays[0] == 7).all(), "something has written to it"
                assert found.min() == found.max()
                error = tasks[1].exception()
                assert error is None or isinstance(error, clients.CollectiveAbortedError)
                if not tasks[0].cancelled():
                    assert error is None
                # Through the broker one whose claim has not left yet is not waited for, and may still end well.
                if way != "star" or not tasks[0].cancelled():
                    assert found[0] == (2.0 if error is None else 1.0)
                assert arrays[1].min() == arrays[1].max() == (2.0 if error is None else 1.0)

    asyncio.run(asyncio.wait_for(scenario(), 2 * PATIENCE_S))


def test_a_task_that_was_cancelled_while_it_joined_is_no_member_and_can_join_at_once(url: str) -> None:
    async def scenario() -> None:
        async with await aio.connect(url, name="a") as first, await aio.connect(url, name="b") as second:
            for moment in range(40):
                name = f"dp{moment}"
                task = asyncio.ensure_future(first.group(name, world_size=2, rank=0, timeout_s=PATIENCE_S))
                # It waits for the other one, or has heard of it, or is a member.
                ahead, behind = (second.group(name, world_size=2, rank=1, timeout_s=PATIENCE_S) for _ in range(2))
                other = asyncio.ensure_future(ahead) if moment % 2 else None
                for _ in range(moment):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    await task.result().leave()
                again = asyncio.ensure_future(first.group(name, world_size=2, rank=0, timeout_s=PATIENCE_S))
                groups = await asyncio.gather(again, behind if other is None else other)
                ahead.close()
                behind.close()
                assert groups[0].rank == 0
                assert first._core.places.by_number.keys() == {groups[0]._place.number}
                for group in groups:
                    await group.leave()

    asyncio.run(asyncio.wait_for(scenario(), 2 * PATIENCE_S))


def test_what_an_array_held_when_its_task_was_cancelled_is_what_is_sent(url: str) -> None:
    """Operations that wait for their turn through the broker: their claims, and short arrays, are still to be sent."""

    async def scenario() -> None:
        async with two_ranks(url, "star") as groups:
            ahead = [await groups[0].all_reduce(np.ones(3), async_op=True, timeout_s=PATIENCE_S) for _ in range(300)]
            array = np.ones(3)
            task = asyncio.ensure_future(groups[0].all_reduce(array, timeout_s=PATIENCE_S))
            await begun(groups[0], 301)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            array[:] = 7
            for work in ahead:
                total = np.ones(3)
                await groups[1].all_reduce(total, timeout_s=PATIENCE_S)
                assert total.tolist() == [2.0] * 3
                await work.wait()
            total = np.ones(3)
            try:
                await groups[1].all_reduce(total, timeout_s=PATIENCE_S)
            except clients.CollectiveAbortedError:
                assert total.tolist() == [1.0] * 3
            else:
                assert total.tolist() == [2.0] * 3

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def test_what_was_kept_of_a_compressed_array_stays_when_its_task_is_cancelled(url: str, way: str) -> None:
    async def scenario() -> None:
        async with two_ranks(url, way) as groups:
            for again in range(2):
                task = asyncio.ensure_future(
                    groups[0].all_reduce(np.ones(5000), compression="int8", feedback="w", timeout_s=PATIENCE_S)
                )
                await begun(groups[0], 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                with pytest.raises(clients.CollectiveAbortedError):
                    await groups[1].all_reduce(
                        np.ones(5000), compression="int8", feedback=f"w{again}", timeout_s=PATIENCE_S
                    )

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def test_a_task_that_is_cancelled_at_the_end_of_a_works_block_has_its_array_again(url: str, way: str) -> None:
    async def run() -> None:
        async with two_ranks(url, way) as (first, second):
            array = np.ones(100_000, np.float32)
            entered = asyncio.Event()

            async def block() -> None:
                async with await first.all_reduce(array, async_op=True):
                    entered.set()

            task = asyncio.create_task(block())
            await entered.wait()
            await begun(first, 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            array[:] = 100
            with pytest.raises(clients.CollectiveAbortedError):
                await second.all_reduce(np.ones(100_000, np.float32), timeout_s=PATIENCE_S)
            assert (array == 100).all()

    asyncio.run(run())
