"""A rank that was killed is named while its connections are still open, as they are until its memory is given back.

How long that takes depends on the machine. So here another process keeps the connections open for as long as the test
wants: whoever waited for their end would wait for ever.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.collectives import ring
from tests.daemon import PATIENCE_S, ROOT, Daemon

NEVER_S = "3600"


@contextmanager
def rank(url: str, schedule: str) -> Iterator[subprocess.Popen[bytes]]:
    """Rank 1, not a fork of the tests' template, which would wait for its end at once."""
    command = [sys.executable, "-m", "tests.system.ending_rank", url, schedule]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        try:
            yield started
        finally:
            started.kill()


def says_nothing_more(started: subprocess.Popen[bytes]) -> bool:
    """Whether all that have its standard output have closed it."""
    assert started.stdout is not None
    poll = select.poll()
    poll.register(started.stdout.fileno(), select.POLLIN)
    return bool(poll.poll(0))


COMPILED = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine is not compiled")


@pytest.mark.parametrize("schedule", ["auto", "star", pytest.param("ring", marks=COMPILED)])
def test_a_killed_rank_is_named_before_its_connections_are_closed(tmp_path: Path, schedule: str) -> None:
    listen = [f"unix://{tmp_path}/broker.sock"]
    with (
        Daemon("--heartbeat-timeout-s", NEVER_S, listen=listen, admin="off") as daemon,
        clients.connect(daemon.url, name="rank-0") as bus,
        rank(daemon.url, schedule) as killed,
    ):
        group = bus.group("ranks", world_size=2, rank=0, timeout_s=PATIENCE_S, schedule=schedule)
        array = np.ones(4)
        group.all_reduce(array, timeout_s=PATIENCE_S)
        assert array.tolist() == [2.0] * 4
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"kept\n"
        killed.kill()
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(clients.GenerationChangedError) as raised:
            group.all_reduce(array, timeout_s=PATIENCE_S)
        assert raised.value.lost_ranks == [1]
        assert array.tolist() == [2.0] * 4
        # Who keeps the connections open is there still.
        assert not says_nothing_more(killed)
        group.all_reduce(array, timeout_s=PATIENCE_S)
        assert array.tolist() == [2.0] * 4
