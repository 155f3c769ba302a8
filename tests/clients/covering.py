"""Which of many combinations of parameters are enough to have each value of each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def covering(combinations: Sequence[Mapping[str, object]]) -> list[int]:
    """The places of few combinations, but one at least, that together have each value of each parameter.

    Each is the one that has most of what is missing, of equals the first.

    Args:
        combinations: each gives every parameter a value; only values that occur here are asked for.
    """
    missing = {pair for combination in combinations for pair in combination.items()}
    chosen: list[int] = []
    while missing or len(chosen) < min(1, len(combinations)):
        best = max(range(len(combinations)), key=lambda place: len(missing & combinations[place].items()))
        chosen.append(best)
        missing -= combinations[best].items()
    return sorted(chosen)
