"""The schedules: how the ranks of a group carry their operations out, by the names that people and the wire use."""

from __future__ import annotations

from typing import Final

AUTO: Final = "auto"
"""Whichever is the quickest."""
STAR: Final = "star"
"""Through the broker."""
SHM: Final = "shm"
"""On a board: in memory that all ranks share."""
RING: Final = "ring"
HALVING: Final = "halving"
HIERARCHICAL: Final = "hierarchical"
"""A ring of hosts, and one of the ranks of each."""

LINKED: Final = (RING, HALVING, HIERARCHICAL)
"""Those that need links; `auto` leaves the choice between them to the cost model."""
ALL: Final = (STAR, SHM, *LINKED)
"""All that an operation can go by."""
