"""Becoming a member of a group again, after the connection was lost and the place in the group with it.

As in outer_loop.py, what waits is a generator that yields what a call has given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Final, Protocol, TypeVar, cast

from broker.errors import CollectiveError, GenerationChangedError, GroupFinishedError, RankTimeoutError

REJOIN_DELAY_S: Final = 0.05
"""Between two tries: the broker may not have noticed yet that the old place is free."""

M = TypeVar("M", bound="Membership")
T = TypeVar("T")


class Membership(Protocol):
    """What a Group of either kind of client tells of its members."""

    name: str

    @property
    def generation(self) -> int: ...

    @property
    def ranks(self) -> tuple[int, ...]: ...


def join_again(
    rejoin: Callable[[], object], old: M, timeout_s: float, pause: Callable[[float], object]
) -> Generator[object, object, tuple[M, GenerationChangedError]]:
    """The new membership, and how the members have changed by it since the old one; see `join_when_free`."""
    group = cast(M, (yield from join_when_free(rejoin, timeout_s, pause)))
    return group, change_since(old.ranks, group)


def join_when_free(
    rejoin: Callable[[], object], timeout_s: float, pause: Callable[[float], object]
) -> Generator[object, object, object]:
    """What `rejoin` gives once the old place is free.

    Args:
        rejoin: joins the group once.
        timeout_s: for how long it is tried, in seconds.
        pause: waits, for so many seconds.

    Raises:
        GroupFinishedError: the others have come to their end.
        CollectiveError: the place did not become free in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return (yield rejoin())
        except (GroupFinishedError, RankTimeoutError):
            raise
        except CollectiveError:
            if time.monotonic() > deadline_s:
                raise
            yield pause(REJOIN_DELAY_S)


def change_since(ranks: Sequence[int], group: Membership) -> GenerationChangedError:
    """How the members of a group have changed since they were these ranks."""
    lost = sorted(set(ranks) - set(group.ranks))
    return GenerationChangedError(group.name, group.generation, lost, group.ranks)


def carry_out(calls: Generator[object, object, T]) -> T:
    """Goes through calls that have been carried out when they are yielded, and gives what comes of all."""
    try:
        result = next(calls)
        while True:
            result = calls.send(result)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
