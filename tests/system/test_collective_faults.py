"""A few of the faults of collective_faults.py; a thousand are a run by hand."""

from __future__ import annotations

from typing import NoReturn

import pytest

import clients
from broker.collectives import ring, shm
from tests.system import collective_faults
from tests.system.collective_faults import told_ns
from tests.system.fault_table import Table
from tests.system.faulty_rank import Watched

FAULTS = 12


@pytest.mark.timeout(300)
@pytest.mark.parametrize("schedule", ["shm", "star", "links", "hierarchical"])
def test_whatever_happens_to_a_rank_or_the_broker_the_group_is_right_and_whole_again(schedule: str) -> None:
    if schedule != "star" and not (shm.AVAILABLE and ring.AVAILABLE):
        pytest.skip("the engines are not compiled")
    found = Table()
    collective_faults.run(schedule, 7, FAULTS, found)
    assert found.done.total() == FAULTS


def test_a_table_counts_what_was_well_and_what_was_not() -> None:
    found, other = Table(), Table()
    found.done["kill"] = 2
    found.told_ms["kill"] = [10.0, 30.0]
    other.done["kill"], other.problems["cut", "leak"] = 1, 1
    other.told_ms["kill"], other.whole_ms["kill"], other.since_ms["kill"] = [20.0], [500.0], [40.0]
    found.add(other)
    _, kill, cut, everything = (line.split() for line in found.lines())
    assert kill == ["kill", "3", "0", "0", "0", "20", "30", "30", *["500"] * 3, *["40"] * 3]
    assert cut == ["cut", "1", "0", "0", "1", *["-"] * 9]
    assert everything[:5] == ["all", "4", "0", "0", "1"]


def test_the_time_until_a_survivor_is_told_is_that_of_its_call_and_not_of_its_own_work() -> None:
    waited = ["over", "1", "7", "GenerationChangedError", "3", "100", "250"]
    came_late = ["over", "1", "7", "GenerationChangedError", "3", "240", "250"]
    named_later = ["over", "2", "0", "GenerationChangedError", "3", "900", "1000"]
    assert told_ns([waited], 200) == 50
    assert told_ns([came_late], 200) == 10
    assert told_ns([waited, named_later], 200) == 800


def test_a_rank_notes_when_it_called_what_has_failed() -> None:
    class Failing:
        generation = 3

        def barrier(self) -> NoReturn:
            raise clients.GenerationChangedError("faults", 4, [1], (0,))

    group = Watched(Failing())  # type: ignore[arg-type]
    assert group.generation == 3
    with pytest.raises(clients.GenerationChangedError):
        group.barrier()
    assert 0 < group.called_ns <= group.failed_ns
