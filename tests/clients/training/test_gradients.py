"""Gradients that are reduced in buckets while others are still to come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clients
from clients import aio
from clients.training.gradients import BucketPlan
from tests.clients.serving import ServingThread
from tests.clients.test_groups import PATIENCE_S, on_all_ranks, schedule  # noqa: F401

SHAPES = [(30, 40), (40,), (40, 5000), (), (5000, 3)]


def gradients(rank: int, step: int) -> list[np.ndarray]:
    return [np.full(shape, rank + step, np.float64 if len(shape) == 1 else np.float32) for shape in SHAPES]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[ServingThread]:
    with ServingThread(f"unix://{tmp_path}/broker.sock") as serving:
        yield serving


@pytest.mark.parametrize("bucket_bytes", [1, 5000, 100_000, 1 << 30])
def test_a_plan_has_every_element_once_and_the_last_arrays_first(bucket_bytes: int) -> None:
    arrays = gradients(0, 0)
    plan = BucketPlan(arrays, max(bucket_bytes, 64))
    for number, bucket in enumerate(plan.buckets):
        for piece in bucket:
            piece[...] += number + 1
    assert all((array > 0).all() for array in arrays)
    assert sum(piece.size for bucket in plan.buckets for piece in bucket) == sum(array.size for array in arrays)
    assert arrays[-1].max() <= arrays[0].min()
    assert all(piece.nbytes <= max(bucket_bytes, 64) or len(bucket) == 1 for bucket in plan.buckets for piece in bucket)


def test_a_plan_is_made_of_arrays_that_a_generator_yields() -> None:
    plan = BucketPlan((gradient for gradient in gradients(0, 0)), 5000)
    assert [len(bucket) for bucket in plan.buckets] == [
        len(bucket) for bucket in BucketPlan(gradients(0, 0), 5000).buckets
    ]


@pytest.mark.parametrize("order", ["backwards", "at random"])
def test_a_bucket_starts_when_it_is_full_and_those_before_it_have_started(order: str) -> None:
    plan = BucketPlan(gradients(0, 0), 5000)
    started: list[int] = []
    indices = list(reversed(range(len(SHAPES))))
    if order == "at random":
        random.Random(3).shuffle(indices)
    for index in indices:
        assert index in plan.lacking
        started += plan.ready(index)
    assert started == list(range(len(plan.buckets)))
    assert plan.lacking == []
    with pytest.raises(clients.InvalidValue, match="each once"):
        plan.ready(0)
    plan.begin()
    assert plan.lacking == list(range(len(SHAPES)))


def test_steps_whose_gradients_come_in_another_order_on_each_rank(serving: ServingThread) -> None:
    def connect(name: str) -> clients.Client:
        return clients.connect(serving.url, name=name)

    opened: list[clients.Client] = []

    def kept(name: str, **_: object) -> clients.Client:
        opened.append(connect(name))
        return opened[-1]

    def work(group: clients.Group, _: clients.Client) -> object:
        arrays = gradients(group.rank, 0)
        buckets = clients.GradientBuckets(group, arrays, op="sum", bucket_bytes=30_000)
        means = []
        for step in range(4):
            for array, value in zip(arrays, gradients(group.rank, step), strict=True):
                array[...] = value
            indices = list(reversed(range(len(arrays))))
            if step % 2:
                random.Random(group.rank).shuffle(indices)
            with pytest.raises(clients.InvalidValue, match="have not been ready"):
                buckets.wait()
            for index in indices:
                buckets.ready(index)
            buckets.wait(timeout_s=PATIENCE_S)
            means.append({float(array.min()) for array in arrays} | {float(array.max()) for array in arrays})
        return means

    assert on_all_ranks(kept, 3, work) == [[{3.0}, {6.0}, {9.0}, {12.0}]] * 3
    for bus in opened:
        bus.close()


def test_a_rank_that_does_not_come_fails_the_step_and_the_next_one_begins(serving: ServingThread) -> None:
    opened: list[clients.Client] = []

    def connect(name: str, **_: object) -> clients.Client:
        opened.append(clients.connect(serving.url, name=name))
        return opened[-1]

    def work(group: clients.Group, _: clients.Client) -> object:
        arrays = gradients(group.rank, 1)
        buckets = clients.GradientBuckets(group, arrays, bucket_bytes=30_000, timeout_s=PATIENCE_S)
        buckets.ready(len(arrays) - 1)
        if group.rank == 0:
            buckets.cancel()
        else:
            for index in range(len(arrays) - 1):
                buckets.ready(index)
            group.abort()
            with pytest.raises(clients.CollectiveError):
                buckets.wait(timeout_s=PATIENCE_S)
        return repr(buckets)

    first, second = on_all_ranks(connect, 2, work)
    assert first == second
    assert "under_way=0 lacking=5" in str(first)
    for bus in opened:
        bus.close()


def test_a_step_that_is_given_up_is_begun_anew_with_the_asynchronous_client(serving: ServingThread) -> None:
    async def alone() -> None:
        async with await aio.connect(serving.url) as bus:
            arrays = gradients(0, 0)
            buckets = aio.GradientBuckets(await bus.group("alone", world_size=1), arrays, bucket_bytes=5000)
            await buckets.ready(len(arrays) - 1)
            await buckets.cancel()
            assert f"under_way=0 lacking={len(arrays)}" in repr(buckets)
            for index in range(len(arrays)):
                await buckets.ready(index)
            await buckets.wait(timeout_s=PATIENCE_S)

    asyncio.run(alone())


def test_the_asynchronous_client_has_them_too(serving: ServingThread) -> None:
    async def rank(number: int) -> list[float]:
        async with await aio.connect(serving.url, name=f"rank-{number}") as bus:
            group = await bus.group("dp", world_size=2, rank=number, timeout_s=PATIENCE_S)
            arrays = gradients(number, 0)
            buckets = aio.GradientBuckets(group, arrays, bucket_bytes=30_000)
            for index in reversed(range(len(arrays))):
                await buckets.ready(index)
            await buckets.wait(timeout_s=PATIENCE_S)
            await group.barrier()
            return [float(array.mean()) for array in arrays]

    async def both() -> list[list[float]]:
        return list(await asyncio.gather(rank(0), rank(1)))

    assert asyncio.run(both()) == [[0.5] * len(SHAPES)] * 2
