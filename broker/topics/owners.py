"""Which of a broker's workers has a topic, and which has a collective group.

Clients and broker reckon it by themselves, so nobody is asked: CRC-32 (the one of IEEE 802.3, as in zlib) of the name
in UTF-8, modulo the number of workers. What is said about a name lies with what it is said about: `$dead/jobs` with
`jobs`, `$sys/groups/ring` with the group `ring`. Every client has a session with worker 0, so who is there is its word.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from zlib import crc32

from broker.topics.names import is_filter

HOME: Final = 0
"""The worker with which every client has a session."""
_ABOUT: Final = ("$dead/", "$sys/groups/")
_AT_HOME: Final = "$sys/sessions"
_SYSTEM: Final = "$sys/"


@lru_cache(maxsize=4096)
def owner(name: str, workers: int) -> int:
    """The worker, from 0, that has a topic or a group."""
    for prefix in _ABOUT:
        name = name.removeprefix(prefix)
    # What cannot be a name is refused by who looks at it, and not here.
    return crc32(name.encode("utf-8", "surrogatepass")) % workers


def owners(topic_filter: str, workers: int) -> Sequence[int]:
    """The workers that may have topics that a filter matches."""
    if topic_filter == _AT_HOME:
        return (HOME,)
    everywhere = topic_filter.startswith(_SYSTEM) and not topic_filter.startswith(_ABOUT)
    if everywhere or is_filter(topic_filter):
        return range(workers)
    return (owner(topic_filter, workers),)
