"""That stopped ranks are named can be measured: `python -m tests.system.naming`, once, whatever its times are."""

from __future__ import annotations

import random

from tests.system import naming


def test_a_rank_that_is_stopped_is_named_by_the_command_and_by_the_events_of_the_page() -> None:
    times, _ = naming.measure("star", 1, 10, random.Random(1))
    assert {name: len(found) for name, found in times.items()} == {"known": 1, "command": 1, "page": 1}
    # Nothing is named before it has not moved for so long.
    assert all(each[0] > naming.WAITS_S for each in times.values())
