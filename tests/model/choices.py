"""What the steps choose from: few topics and clients, and bounds that a few messages reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

KIB = 1024
CHUNK_BYTES = 32 * KIB
BLOCKED_BYTES = 64 * KIB
LAG_BYTES = 64 * KIB
RING_MESSAGES, RING_BYTES = 12, 96 * KIB
WINDOW_MESSAGES, WINDOW_BYTES = 24, 96 * KIB
CLIENTS = 4
SUBSCRIPTIONS_MAX = 6
TOPICS = ("a", "a/b", "a/b/c", "d", "d/b")
FILTERS = ("#", "a/#", "+", "+/b", "a/b", "a/+/c", "d", "d/#", "a")
GROUP_FILTERS = {"workers": "a/#", "others": "+/b"}
LANES = ("default", "default", "default", "bulk", "control")
POLICIES = ("block", "block", "drop_oldest", "drop_newest", "latest")
BOUNDS = tuple((messages, size * KIB) for messages in (1, 3, 8, 40) for size in (64, 256))
SMALL_SIZES = (0, 1, 7, 40, 200, 4000, 16_383)
LARGE_SIZES = (16_384, 20_000, 32_768, 65_536, 100_000, 150_001, 230_000)
PATTERN = bytes(range(251)) * 1200
NUMBER_BYTES = 3
"""Of a step's number: enough for all that one action chooses."""
WEIGHTS = {
    "publish": 8,
    "burst": 4,
    "publish_large": 4,
    "give_up": 2,
    "flush": 1,
    "pass_time": 1,
    "subscribe": 2,
    "unsubscribe": 1,
    "take": 4,
    "stop_or_go": 2,
    "move_some": 2,
    "die": 1,
    "calm": 2,
}
"""How often each action is chosen."""
WEIGHTED = tuple(name for name, weight in WEIGHTS.items() for _ in range(weight))


class Choice:
    """A number that is used up by choosing."""

    def __init__(self, number: int) -> None:
        self._rest = number

    def among(self, options: Sequence[T]) -> T:
        """One of them."""
        self._rest, index = divmod(self._rest, len(options))
        return options[index]

    def upto(self, most: int) -> int:
        """A number from 1."""
        return self.among(range(1, most + 1))

    def one_in(self, odds: int) -> bool:
        """Yes, once in a while."""
        return self.among(range(odds)) == odds - 1
