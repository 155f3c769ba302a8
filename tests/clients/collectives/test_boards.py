"""Groups on a board: who gets one, and that nothing of it is left over."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.collectives import shm
from broker.errors import LimitExceeded
from clients.collectives import boards
from tests.clients.conftest import Connect
from tests.clients.ranks import all_together, outcomes_of
from tests.clients.serving import ServingThread
from tests.clients.test_groups import PATIENCE_S, on_all_ranks
from tests.descriptors import opened

pytestmark = pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    with ServingThread(f"unix://{tmp_path}/broker.sock") as serving:
        yield serving


def has_board(group: clients.Group) -> bool:
    return group.schedule == "shm"


def join_all(*wishes: tuple[clients.Client, dict[str, object]]) -> list[object]:
    """The group of each rank, or what it raised."""
    size = len(wishes)
    return outcomes_of(
        *(
            partial(bus.group, "dp", world_size=size, rank=rank, timeout_s=PATIENCE_S, **options)
            for rank, (bus, options) in enumerate(wishes)
        )
    )


def test_ranks_over_a_unix_socket_have_a_board_in_every_generation(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        found = [has_board(group)]
        total = group.all_reduce(np.ones(70_000, np.float32))
        if group.rank == 1:
            group.leave()
            return found, total[-1]
        with pytest.raises(clients.GenerationChangedError):
            group.barrier(timeout_s=PATIENCE_S)
        found.append(has_board(group))
        return found, group.all_reduce(np.ones(2, np.float32))[-1]

    assert on_all_ranks(connect, 3, work) == [([True, True], 2.0), ([True], 3.0), ([True, True], 2.0)]


def test_one_rank_that_asks_for_star_is_enough_for_star(connect: Connect) -> None:
    groups = join_all((connect("a"), {}), (connect("b"), {"schedule": "star"}))
    assert [has_board(group) for group in groups] == [False, False]


def test_a_hierarchy_of_one_host_is_a_board(connect: Connect) -> None:
    groups = join_all((connect("a"), {"schedule": "hierarchical"}), (connect("b"), {}))
    assert [has_board(group) for group in groups] == [True, True]


def test_shm_is_refused_where_a_rank_does_not_share_memory(connect: Connect) -> None:
    outcomes = join_all((connect("a"), {"schedule": "shm"}), (connect("b", shared_memory=False), {}))
    assert isinstance(outcomes[0], clients.CollectiveError)
    assert "schedule='shm' needs" in str(outcomes[0])
    with pytest.raises(clients.GenerationChangedError):
        outcomes[1].barrier(timeout_s=PATIENCE_S)


def test_shm_is_given_where_all_ranks_share_memory(connect: Connect) -> None:
    groups = join_all((connect("a"), {"schedule": "shm"}), (connect("b"), {"schedule": "shm"}))
    assert [has_board(group) for group in groups] == [True, True]


def test_an_unknown_schedule_is_refused_at_once(connect: Connect) -> None:
    with pytest.raises(clients.InvalidValue, match="none of auto, shm, star"):
        connect("a").group("dp", world_size=1, schedule="tree")


def test_a_rank_that_cannot_map_the_board_takes_everybody_to_the_broker(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = shm.Engine

    def refusing(file: int, size_bytes: int, positions: int, position: int, descriptor: int) -> shm.Engine:
        if position == 1:
            raise LimitExceeded("board", size_bytes, 0)
        return engine(file, size_bytes, positions, position, descriptor)

    monkeypatch.setattr(boards.shm, "Engine", refusing)

    def work(group: clients.Group, _: clients.Client) -> object:
        with pytest.raises(clients.GenerationChangedError) as caught:
            group.all_reduce(np.ones(3), timeout_s=PATIENCE_S)
        return caught.value.lost_ranks, has_board(group), group.all_reduce(np.ones(3)).tolist()

    assert on_all_ranks(connect, 2, work) == [([], False, [2.0] * 3)] * 2


def test_works_that_are_under_way_when_a_rank_is_lost_all_say_so(connect: Connect) -> None:
    begun = threading.Event()

    def work(group: clients.Group, bus: clients.Client) -> object:
        if group.rank == 1:
            begun.wait(PATIENCE_S)
            bus.close()
            return "closed"
        arrays = [np.ones(5, np.float32), np.ones(3_000_000, np.float32)]
        works = [group.all_reduce(array, async_op=True, timeout_s=PATIENCE_S) for array in arrays]
        begun.set()
        for each in works:
            with pytest.raises(clients.GenerationChangedError):
                each.wait(timeout_s=PATIENCE_S)
            assert each.done
        assert all((array == 1).all() for array in arrays)
        return group.all_reduce(np.ones(1, np.float32)).tolist()

    assert on_all_ranks(connect, 2, work) == [[1.0], "closed"]


def test_works_of_a_closed_client_fail(connect: Connect) -> None:
    groups = join_all((connect("a"), {}), (connect("b"), {}))
    array = np.ones(100_000, np.float32)
    work = groups[0].all_reduce(array, async_op=True, timeout_s=PATIENCE_S)
    with pytest.raises(clients.TimeoutError):
        work.wait(timeout_s=0.01)
    groups[0].leave()
    with pytest.raises(clients.ConnectionClosed):
        work.wait(timeout_s=PATIENCE_S)
    assert (array == 1).all()


def test_no_descriptor_and_no_mapping_outlives_a_group(connect: Connect) -> None:
    buses = [connect(f"rank-{rank}") for rank in range(3)]
    before = _boards()
    for _ in range(3):
        groups = join_all(*((bus, {}) for bus in buses))
        all_together(*(partial(group.all_reduce, np.ones(100_000, np.float32)) for group in groups))
        assert _boards() != before
        for group in groups:
            group.leave()
        del group, groups
    buses[0].flush()
    # Threads of earlier tests may still be giving theirs back.
    assert all(now <= earlier for now, earlier in zip(_boards(), before, strict=True))


def test_the_board_of_a_generation_goes_with_it_though_nothing_collects_garbage(connect: Connect) -> None:
    buses = [connect(f"rank-{rank}") for rank in range(3)]
    groups = join_all(*((bus, {}) for bus in buses))
    board = weakref.ref(groups[0]._place.way)
    gc.disable()
    try:
        all_together(*(group.barrier for group in groups))
        groups[2].leave()
        # The first one is told by an operation in progress or by its next one, as it happens.
        with pytest.raises(clients.GenerationChangedError):
            groups[0].all_reduce(np.ones(3, np.float32), timeout_s=PATIENCE_S)
        assert board() is None
    finally:
        gc.enable()


def test_an_error_that_a_work_returns_keeps_nothing_of_the_way_it_came(broker: ServingThread) -> None:
    with clients.connect(broker.url) as bus, clients.connect(broker.url) as other:
        groups = join_all((bus, {}), (other, {}))
        work = groups[0].all_reduce(np.ones(3, np.float32), async_op=True, timeout_s=PATIENCE_S)
        groups[1].leave()
        error = work.exception(PATIENCE_S)
        assert isinstance(error, clients.GenerationChangedError)
        assert error.__traceback__ is None


def _boards() -> tuple[int, int]:
    """Descriptors and mappings of shared memory in this process, which is also the broker's."""
    gc.collect()
    descriptors = sum("memfd:tensorbus" in each for each in opened())
    return descriptors, Path("/proc/self/maps").read_text().count("memfd:tensorbus")
