"""The numbers by which the parts of tensorbus name things to each other."""

from __future__ import annotations

from typing import NewType

SessionId = NewType("SessionId", int)
"""A session in the broker, from 1 upwards, never used twice in a broker's life."""

SubscriptionNumber = NewType("SubscriptionNumber", int)
"""A subscription within its session; 0 is the session's inbox."""

GroupNumber = NewType("GroupNumber", int)
"""A collective group in the broker."""

Rank = NewType("Rank", int)
"""A member's stable place in a group, from 0 to world_size - 1."""

Generation = NewType("Generation", int)
"""The version of a group's membership, from 1 upwards."""
