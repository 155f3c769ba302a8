"""A few of the faults of collective_faults.py; a thousand are a run by hand."""

from __future__ import annotations

import pytest

from broker.collectives import ring, shm
from tests.system import collective_faults

FAULTS = 12


@pytest.mark.timeout(300)
@pytest.mark.parametrize("schedule", ["shm", "star", "links", "hierarchical"])
def test_whatever_happens_to_a_rank_or_the_broker_the_group_is_right_and_whole_again(schedule: str) -> None:
    if schedule != "star" and not (shm.AVAILABLE and ring.AVAILABLE):
        pytest.skip("the engines are not compiled")
    arena = collective_faults.run(schedule, seed=7, count=FAULTS)
    assert arena.done.total() == FAULTS
