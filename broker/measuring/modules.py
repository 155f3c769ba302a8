"""Which of the hot modules are compiled (docs/decisions/0008-compiled.md)."""

from __future__ import annotations

from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def _named(suffix: str) -> int:
    return sum(1 for package in ("broker", "clients") for _ in (_ROOT / package).rglob(f"*{suffix}"))


@cache
def compiled_modules() -> int:
    """How many are compiled here, for this Python."""
    return _named(EXTENSION_SUFFIXES[0])


@cache
def hot_modules() -> int:
    """How many there are; 0 when it is not known, because their types were not installed with them."""
    return _named(".pxd")
