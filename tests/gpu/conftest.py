"""What all tests on a real GPU take."""

from __future__ import annotations

import pytest

from broker import devices


@pytest.fixture(scope="module", autouse=True)
def _there_is_a_gpu() -> None:
    if devices.problem():
        pytest.skip(f"there is no GPU to test with: {devices.problem()}")
