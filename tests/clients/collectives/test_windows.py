"""Arrays that the ranks of one host share: the results are right, and a failure changes nothing that is to stay."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import clients
from broker.collectives import shm
from broker.errors import InvalidValue
from broker.transport.shared_memory import SharedMemory
from clients.collectives import windows
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread
from tests.clients.test_groups import PATIENCE_S, on_all_ranks

pytestmark = pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")

LONG = 1 << 20
"""Elements: with float32 what is written past the caches where it is staged."""


@pytest.fixture(params=["shm", "star"])
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Stands in for that of test_groups: star has ordinary arrays."""
    monkeypatch.setitem(on_all_ranks.__globals__["OPTIONS"], "schedule", request.param)
    return str(request.param)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    with ServingThread(f"unix://{tmp_path}/broker.sock") as serving:
        yield serving


def is_shared(array: np.ndarray, group: clients.Group) -> bool:
    found = group._place.windows
    room = None if found is None else found._find(array)
    return room is not None and room.mappings.shared


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("elements", [20_011, 280_011, LONG + 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64])
def test_the_result_is_in_out_and_the_array_is_as_it_was(
    connect: Connect, schedule: str, ranks: int, elements: int, dtype: type
) -> None:
    pattern = np.tile(np.arange(5), -(-elements // 5))[:elements]
    given = [(pattern + rank).astype(dtype) for rank in range(ranks)]
    sums = (pattern * ranks + ranks * (ranks - 1) // 2).astype(dtype)
    wanted = {"sum": sums, "max": given[ranks - 1]}

    def work(group: clients.Group, _: clients.Client) -> object:
        array, result = group.empty(elements, dtype), group.empty(elements, dtype)
        shared = is_shared(array, group)
        array[:] = given[group.rank]
        for op, due in wanted.items():
            returned = group.all_reduce(array, op, out=result)
            assert returned is result
            assert np.array_equal(result, due)
            assert np.array_equal(array, given[group.rank])
        return shared

    due = schedule == "shm" and elements * np.dtype(dtype).itemsize >= windows.SHARED_BYTES_MIN
    assert on_all_ranks(connect, ranks, work) == [due] * ranks


def test_parts_of_arrays_and_arrays_in_turn(connect: Connect, schedule: str) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        memory = group.empty((2, LONG))
        memory[0], memory[1] = group.rank + 1, 0
        for _ in range(3):
            group.all_reduce(memory[0], out=memory[1])
            memory[0] = memory[1]
        works = [group.all_reduce(memory[0, : LONG // 2], out=memory[1, LONG // 2 :], async_op=True)]
        works.append(group.all_reduce(memory[0, LONG // 2 :], out=memory[1, : LONG // 2], async_op=True))
        for each in works:
            each.wait(PATIENCE_S)
        return np.unique(memory).tolist()

    # 1 + 2, doubled twice; and once more.
    assert on_all_ranks(connect, 2, work) == [[12.0, 24.0]] * 2


@pytest.mark.parametrize("ordinary", ["array", "out", "in place", "elsewhere in it"])
def test_a_rank_whose_arrays_lie_elsewhere_is_enough_for_the_ordinary_way(connect: Connect, ordinary: str) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array, result = group.empty((2, LONG)), group.empty(LONG)
        array[:] = group.rank + 1
        source, target = array[0], result
        if group.rank == 1:
            if ordinary == "array":
                source = array[0].copy()
            elif ordinary == "out":
                target = np.empty(LONG, np.float32)
            elif ordinary == "in place":
                target = None
            else:
                source = array[1]
        return np.unique(group.all_reduce(source, out=target)).tolist()

    assert on_all_ranks(connect, 2, work) == [[3.0], [3.0]]


def test_after_ranks_that_differ_the_array_is_as_it_was_and_all_go_on(connect: Connect, schedule: str) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array, result = group.empty(LONG), group.empty(LONG)
        array[:] = group.rank + 1
        if group.rank == 0:
            with pytest.raises(clients.CollectiveMismatchError):
                group.all_reduce(array, out=result, timeout_s=PATIENCE_S)
        else:
            with pytest.raises(clients.CollectiveMismatchError):
                group.all_reduce(array, "max", out=result, timeout_s=PATIENCE_S)
        assert (array == group.rank + 1).all()
        shared = is_shared(array, group), is_shared(result, group)
        group.all_reduce(array, out=result, timeout_s=PATIENCE_S)
        assert (result == 3).all()
        return shared

    assert on_all_ranks(connect, 2, work) == [(schedule == "shm", False)] * 2


def test_arrays_outlive_their_generation_and_the_next_one_has_new_ones(connect: Connect, schedule: str) -> None:
    def work(group: clients.Group, bus: clients.Client) -> object:
        array, result = group.empty(LONG), group.empty(LONG)
        array[:] = 1
        group.all_reduce(array, out=result)
        if group.rank == 2:
            bus.close()
            assert (array == 1).all()
            return "closed"
        with pytest.raises(clients.GenerationChangedError):
            group.all_reduce(array, out=result, timeout_s=PATIENCE_S)
        assert (array == 1).all()
        assert not is_shared(result, group)
        group.all_reduce(array, out=result, timeout_s=PATIENCE_S)
        assert (result == 2).all()
        array, result = group.empty(LONG), group.empty(LONG)
        array[:] = 5
        group.all_reduce(array, out=result, timeout_s=PATIENCE_S)
        assert (result == 10).all()
        return is_shared(result, group)

    assert on_all_ranks(connect, 3, work) == [schedule == "shm", schedule == "shm", "closed"]


def test_ranks_that_ask_for_different_arrays_are_told(connect: Connect, schedule: str) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        return group.empty(50_000 + group.rank)

    for outcome in on_all_ranks(connect, 2, work):
        assert isinstance(outcome, clients.CollectiveMismatchError)


def test_where_one_rank_cannot_map_the_memory_all_have_ordinary_arrays(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def once(*offer: int) -> SharedMemory:
        opened.append(offer)
        raise InvalidValue("shared memory", offer, "is not to be had")

    monkeypatch.setattr(windows, "_open", once)

    def work(group: clients.Group, _: clients.Client) -> object:
        array, result = group.empty(LONG), group.empty(LONG)
        array[:] = 1
        return is_shared(array, group), float(group.all_reduce(array, out=result)[-1])

    assert on_all_ranks(connect, 2, work) == [(False, 2.0)] * 2
    assert opened


def test_a_descriptor_of_another_number_is_not_opened(tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    try:
        with pytest.raises(InvalidValue, match="is not file"):
            windows._open(os.getpid(), file, os.fstat(file).st_ino + 1, 4096)
    finally:
        os.close(file)


def test_what_was_taken_out_of_the_common_memory_nobody_else_changes() -> None:
    own = SharedMemory.create(windows.SHARED_BYTES_MIN, common=True)
    other = SharedMemory.adopt(os.dup(own.descriptor), own.size_bytes, common=True)
    array = np.frombuffer(own.view(0, own.size_bytes, own), np.uint8)
    theirs = np.frombuffer(other.view(0, own.size_bytes, other), np.uint8)
    theirs[:] = 7
    assert array[5] == 7
    mappings = windows.Mappings([own, other], 0)
    mappings.detach()
    mappings.detach()
    theirs[:] = 9
    assert (array == 7).all()
    array[:] = 3
    assert (theirs == 9).all()
    assert not mappings.shared


def mapped_files() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:")


def test_nothing_is_left_when_the_arrays_are_gone(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        group.barrier()
        group.all_reduce(np.ones(LONG, np.float32))
        gc.collect()
        group.barrier()
        before = mapped_files()
        group.barrier()
        arrays = [group.empty(LONG) for _ in range(3)]
        group.all_reduce(arrays[0], out=arrays[1])
        group.barrier()
        arrays.clear()
        gc.collect()
        group.barrier()
        return mapped_files() - before

    assert on_all_ranks(connect, 2, work) == [0, 0]


def test_an_interrupted_empty_holds_no_memory_while_its_error_is_kept(broker: ServingThread) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:")

    with clients.connect(broker.url) as bus, clients.connect(broker.url) as other:
        with ThreadPoolExecutor(1) as pool:
            joined = pool.submit(other.group, "dp", world_size=2, rank=1, timeout_s=PATIENCE_S)
            group = bus.group("dp", world_size=2, rank=0, timeout_s=PATIENCE_S)
            joined.result(PATIENCE_S)
        before = mapped()
        with pytest.raises(clients.RankTimeoutError) as kept:
            group.empty(LONG, timeout_s=0.01)
        assert kept.value.__traceback__ is not None
        assert mapped() <= before


def test_any_number_of_views_is_found_where_it_lies(connect: Connect, schedule: str) -> None:
    """Where an array lies is remembered, of a bounded number."""

    def work(group: clients.Group, _: clients.Client) -> object:
        array, result, ordinary = group.empty(LONG), group.empty(LONG), np.empty(LONG, np.float32)
        array[:] = np.arange(LONG) % 1000
        for turn in range(2 * windows.FOUND_MAX):
            start = 16 * turn
            target = ordinary if turn % 3 == 2 else result
            view = target[start : start + 10_000]
            group.all_reduce(array[start : start + 10_000], out=view)
            assert is_shared(view, group) == (schedule == "shm" and target is result)
            assert view[0] == 2 * (start % 1000)
        found = group._place.windows
        return found is None or 0 < len(found._found) <= windows.FOUND_MAX

    assert all(on_all_ranks(connect, 2, work))
