"""What the benchmarks' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where all tests' workers come from: to start one per test would be most of the tests' time."""
    with Nursery() as shared:
        yield shared
