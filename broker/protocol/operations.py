"""What a member tells the broker of its operations over links, which do not reach the broker (docs/wire.md section 15).

Times are durations up to the moment in which the member has written the frame, whose time_ns is that moment on its own
clock. Positions are those of the generation: number n is bit n, and the n-th of its ranks.
"""

from __future__ import annotations

from typing import Final

import msgspec

TOLD_MAX: Final = 64
"""Operations in one frame."""


class Told(msgspec.Struct, array_like=True):
    """An operation, as one member has it."""

    sequence: int
    began_ago_ns: int
    """Since its program asked for it."""
    ended_ago_ns: int
    """0 while it is under way."""
    outcome: int
    """0 while it is under way; 1 done, 2 missing, 3 mismatch, 4 given up, 5 generation over, 6 no memory, 7 broken."""
    claim: int
    """The place of what the program asked for among `claims`."""
    positions: int = 0
    """Of a failure: those that failed it, or those that did not ask for the same."""
    timeout_ns: int = 0
    """Of `missing`: the time that was over."""


class Operations(msgspec.Struct, omit_defaults=True):
    """OPERATIONS: what is new since the last one. An operation that is under way comes last, and again and again."""

    told: list[Told] = []
    claims: list[bytes] = []
    phase: int = 0
    """Of the operation under way: 0 while not all have come, 1 while arrays move, 2 when this member has the result."""
    waits_for: int = 0
    """Of that operation: the positions for which this member waits."""
    received_bytes: int = 0
    """Of that operation."""
