"""The daemon of most system tests: one for each, with nothing but TCP, at an address where it can be started again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.loopback import own_host


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(listen=(f"tcp://{own_host()}:0",), admin="off") as serving:
        yield serving


@pytest.fixture(params=[2, 3])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def several(workers: int, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with so many workers, at tcp and at unix."""
    listen = ("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus.sock")
    with Daemon("--workers", str(workers), listen=listen, admin="off") as serving:
        yield serving
