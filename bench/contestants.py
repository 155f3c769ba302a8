"""All contestants, in the order of the tables. The first is the reference of the ratios."""

from __future__ import annotations

from typing import Final

from bench.contestant import Contestant
from bench.relay import Relay
from bench.tensorbus import Tensorbus

ALL: Final[tuple[Contestant, ...]] = (Relay(), Tensorbus())
REFERENCE: Final = ALL[0].name


def by_name(name: str) -> Contestant:
    """The contestant of a name."""
    return next(contestant for contestant in ALL if contestant.name == name)
