"""Who calls with arrays for members that are gone is told of the change, and not that the arrays do not fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import clients
from tests.clients.conftest import Connect
from tests.clients.test_groups import PATIENCE_S, on_all_ranks

CALLS: dict[str, Callable[[clients.Group], object]] = {
    "all_gather": lambda group: group.all_gather(np.ones(4), out=np.ones((3, 4)), timeout_s=PATIENCE_S),
    "gather": lambda group: group.gather(np.ones(4), group.rank, out=np.ones((3, 4)), timeout_s=PATIENCE_S),
    "scatter": lambda group: group.scatter(np.ones(6), group.rank, out=np.ones(2), timeout_s=PATIENCE_S),
    "scatter of a list": lambda group: group.scatter([np.ones(2)] * 3, group.rank, timeout_s=PATIENCE_S),
    "reduce_scatter": lambda group: group.reduce_scatter(np.ones(6), out=np.ones(2), timeout_s=PATIENCE_S),
    "all_to_all": lambda group: group.all_to_all([np.ones(2)] * 3, timeout_s=PATIENCE_S),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_change_is_told_first(connect: Connect, call: str) -> None:
    def work(group: clients.Group, bus: clients.Client) -> object:
        group.barrier()
        if group.rank == 2:
            group.leave()
            return "left"
        # The change is here, and nobody has been told of it.
        while len(group.ranks) == 3:
            bus.flush()
        with pytest.raises(clients.GenerationChangedError):
            CALLS[call](group)
        with pytest.raises(clients.InvalidValue):
            CALLS[call](group)
        return "told"

    assert on_all_ranks(connect, 3, work) == ["told", "told", "left"]
