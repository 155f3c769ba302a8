"""Shared arrays where ranks have to share processors: the same bits, whatever the kernel says to short turns (0048)."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.collectives import shm
from tests.clients.collectives.crowded import NUMBERS, RANKS
from tests.clients.serving import ServingThread
from tests.daemon import Process

pytestmark = [
    pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled"),
    pytest.mark.skipif(platform.machine() not in NUMBERS, reason=f"no system calls known for {platform.machine()}"),
]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with ServingThread(f"unix://{tmp_path}/broker.sock") as serving:
        yield serving.url


def results(*arguments: str) -> list[str]:
    with Process(*arguments, module="tests.clients.collectives.crowded") as process:
        lines = process.read_rest().decode().splitlines()
        assert process.wait() == 0, process.errors
    return lines


def test_ranks_of_one_processor_get_sums_in_their_order_and_their_threads_back_as_they_were(url: str) -> None:
    assert results(url, "together") == [f"rank {rank}: right, as before" for rank in range(RANKS)]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor alone")
def test_ranks_with_a_processor_each_get_the_same(url: str) -> None:
    ranks = min(RANKS, len(os.sched_getaffinity(0)))
    assert results(url, "apart") == [f"rank {rank}: right, as before" for rank in range(ranks)]


@pytest.mark.parametrize("refused", ["sched_setattr", "sched_getattr"])
@pytest.mark.parametrize("error", ["EPERM", "EINVAL", "ENOSYS"])
def test_a_kernel_that_gives_no_short_turns_changes_nothing_but_the_time(url: str, refused: str, error: str) -> None:
    assert results(url, "together", refused, error) == [f"rank {rank}: right, as before" for rank in range(RANKS)]
