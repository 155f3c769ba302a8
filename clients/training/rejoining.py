"""Becoming a member of a group again, after the connection was lost and the place in the group with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from broker.errors import CollectiveError, GenerationChangedError, GroupFinishedError, RankTimeoutError
from clients.groups import Group

REJOIN_DELAY_S: Final = 0.05
"""Between two tries: the broker may not have noticed yet that the old place is free."""


def join_again(rejoin: Callable[[], Group], old: Group, timeout_s: float) -> tuple[Group, GenerationChangedError]:
    """The new membership, and how the members have changed by it.

    Args:
        rejoin: joins the group once.
        old: the membership that was lost.
        timeout_s: for how long it is tried, in seconds.

    Raises:
        GroupFinishedError: the others have come to their end.
        CollectiveError: the place did not become free in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            group = rejoin()
            break
        except (GroupFinishedError, RankTimeoutError):
            raise
        except CollectiveError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(REJOIN_DELAY_S)
    lost = sorted(set(old.ranks) - set(group.ranks))
    return group, GenerationChangedError(group.name, group.generation, lost, group.ranks)
