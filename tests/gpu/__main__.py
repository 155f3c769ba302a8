"""`python -m tests.gpu`: the tests that take a GPU, and figures of it; within five minutes. Without one it exits 0."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from broker import devices
from tests.gpu.figures import show

FOLDER = Path(__file__).parent

if __name__ == "__main__":
    if devices.problem():
        print(f"there is no GPU to test with: {devices.problem()}")
        sys.exit(0)
    status = int(pytest.main([str(FOLDER), "-q", "-s", "-p", "no:cacheprovider"]))
    show()
    sys.exit(status)
