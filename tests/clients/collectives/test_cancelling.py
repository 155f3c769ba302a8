"""Works that are given up, and operations that go on while nobody looks, with both kinds of client and schedule."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.collectives import shm
from tests.clients.collectives.test_boards import join_all
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread
from tests.clients.test_groups import PATIENCE_S, on_all_ranks, schedule  # noqa: F401
from tests.collectives.test_turns import nobody_else_runs


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    """Over a Unix-domain socket, where ranks may have a board."""
    with ServingThread(f"unix://{tmp_path}/broker.sock") as serving:
        yield serving


@pytest.mark.parametrize("elements", [5, 2_000_000])
def test_a_cancelled_work_fails_on_all_ranks_and_changes_nothing(connect: Connect, elements: int) -> None:
    """A short one, and one of more chunks than a rank may send before all others are there."""
    cancelled = threading.Event()

    def work(group: clients.Group, bus: clients.Client) -> object:
        array = np.ones(elements, np.float32)
        if group.rank == 2:
            # Without this rank nothing can have ended before it was given up.
            cancelled.wait(PATIENCE_S)
        pending = group.all_reduce(array, async_op=True, timeout_s=PATIENCE_S)
        if group.rank == 1:
            assert pending.cancel() is True
            # The broker has heard of it.
            bus.flush()
            cancelled.set()
        with pytest.raises(clients.CollectiveAbortedError) as caught:
            pending.wait(timeout_s=PATIENCE_S)
        assert pending.done
        assert pending.cancel() is False
        assert (array == 1).all()
        return caught.value.rank, group.all_reduce(np.ones(2)).tolist()

    assert on_all_ranks(connect, 3, work) == [(1, [3.0, 3.0])] * 3


def test_abort_ends_what_another_thread_waits_for(connect: Connect) -> None:
    aborted = threading.Event()

    def work(group: clients.Group, _: clients.Client) -> object:
        if group.rank == 1:
            aborted.wait(PATIENCE_S)
            with pytest.raises(clients.CollectiveAbortedError) as caught:
                group.reduce_scatter(np.ones(4), timeout_s=PATIENCE_S)
            return caught.value.rank
        stop = threading.Event()

        def watch() -> None:
            while not stop.is_set():
                group.abort()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            # The other rank does not come before this has ended, which only the watcher can bring about.
            with pytest.raises(clients.CollectiveAbortedError) as caught:
                group.reduce_scatter(np.ones(4), timeout_s=PATIENCE_S)
        finally:
            stop.set()
            watcher.join()
            aborted.set()
        assert group.abort() is False
        return caught.value.rank

    assert on_all_ranks(connect, 2, work) == [0, 0]


def test_abort_ends_sends_and_receives_too(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        if group.rank == 1:
            return "elsewhere"
        works = [group.receive(None, 1, 3, async_op=True), group.send(np.ones(3), 1, async_op=True)]
        assert group.abort() is True
        for each in works:
            with pytest.raises(clients.CollectiveAbortedError):
                each.wait(timeout_s=PATIENCE_S)
        return "aborted"

    assert on_all_ranks(connect, 2, work) == ["aborted", "elsewhere"]


def test_urgent_works_end_well_on_ranks_of_different_speed(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        arrays = [np.full(150_000 if each % 3 else 7, group.rank + each, np.float32) for each in range(40)]
        works = []
        for each, array in enumerate(arrays):
            works.append(group.all_reduce(array, async_op=True, priority=each % 5))
            if group.rank and each % 7 == 0:
                works[each // 2].wait(timeout_s=PATIENCE_S)
        for one in works:
            one.wait(timeout_s=PATIENCE_S)
        return [int(array[-1]) for array in arrays]

    assert on_all_ranks(connect, 3, work) == [[3 * each + 3 for each in range(40)]] * 3


@pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")
@pytest.mark.parametrize("elements", [100, 2_000_000])
def test_works_end_while_the_program_computes_and_never_waits(tmp_path: Path, elements: int) -> None:
    with ServingThread(f"unix://{tmp_path}/spinning.sock") as serving:
        buses = [clients.connect(serving.url, name=f"rank-{rank}") for rank in range(2)]
        groups = join_all(*((bus, {"schedule": "shm"}) for bus in buses))
        arrays = [np.full(elements, rank + 1.0) for rank in range(2)]
        for group, array in zip(groups, arrays, strict=True):
            group.all_reduce(array.copy(), async_op=True)
        with nobody_else_runs():
            works = [group.all_reduce(array, async_op=True) for group, array in zip(groups, arrays, strict=True)]
            for _ in range(50_000_000):
                if works[0].done and works[1].done:
                    break
        assert [work.done for work in works] == [True, True]
        assert all((array == 3).all() for array in arrays)
        for bus in buses:
            bus.close()


@pytest.mark.parametrize("several", [False, True])
def test_a_block_that_is_interrupted_at_its_end_has_its_arrays_again(
    broker: ServingThread, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    with clients.connect(broker.url, name="a") as bus, clients.connect(broker.url, name="b") as other:
        first, second = join_all((bus, {}), (other, {}))
        arrays = [np.ones(100_000, np.float32), np.ones(100_000, np.int32)][: 2 if several else 1]
        given = arrays if several else arrays[0]
        work = first.all_reduce(given, async_op=True)
        kind, wait = type(work), type(work).wait

        def interrupted(*_: object) -> object:
            monkeypatch.setattr(kind, "wait", wait)
            raise KeyboardInterrupt

        monkeypatch.setattr(kind, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt), work:
            pass
        assert work.done
        for array in arrays:
            array[:] = 100
        with pytest.raises(clients.CollectiveAbortedError):
            second.all_reduce([array.copy() for array in arrays] if several else arrays[0].copy(), timeout_s=PATIENCE_S)
        assert all((array == 100).all() for array in arrays)


def test_who_is_interrupted_in_a_join_before_it_waits_is_no_member(
    broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with clients.connect(broker.url, name="a") as bus:
        with monkeypatch.context() as patch:
            patch.setattr("clients.collectives.joining.answer", interrupted)
            with pytest.raises(KeyboardInterrupt):
                bus.group("dp", world_size=1, rank=0)
        bus.group("dp", world_size=1, rank=0, timeout_s=PATIENCE_S).barrier()
