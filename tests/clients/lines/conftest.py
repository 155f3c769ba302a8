"""A broker at a Unix socket, and two clients of it: what tests of lines begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import clients
from tests.clients.serving import ServingThread

NEVER_S = 3600.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    # No heartbeat and no report of latencies is among what passes the sockets, however long a test takes.
    with ServingThread(
        f"unix://{tmp_path}/broker.sock",
        heartbeat_interval_s=NEVER_S,
        heartbeat_timeout_s=2 * NEVER_S,
        latency_metrics=False,
    ) as serving:
        yield serving


@pytest.fixture
def bus(broker: ServingThread) -> Iterator[clients.Client]:
    """Who publishes, or asks."""
    with clients.connect(broker.url, name="publisher") as client:
        yield client


@pytest.fixture
def other(broker: ServingThread) -> Iterator[clients.Client]:
    """Who reads, or responds."""
    with clients.connect(broker.url, name="reader") as client:
        yield client
