"""Stands in for the package `cython` where that is not installed: nothing is compiled."""

from __future__ import annotations

from typing import Final

compiled: Final = False
