"""SIGHUP: permissions and quotas of a running daemon."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

import clients
from tests.daemon import PATIENCE_S, Daemon

READS = "[permissions]\neverybody = ['r']\n[permissions.roles.r]\nallow = { subscribe = ['a'], publish = ['a'] }\n"
MUTE = "[permissions]\neverybody = ['r']\n[permissions.roles.r]\nallow = { publish = ['a'] }\n"


def hang_up(daemon: Daemon, expected: str) -> None:
    """Sends SIGHUP and waits until the log says that it was dealt with."""
    assert daemon.process is not None
    before = daemon.process.errors.count(expected)
    daemon.process.signal(signal.SIGHUP)
    deadline_s = time.monotonic() + PATIENCE_S
    with clients.connect(daemon.url) as bus:
        # By the time of an answer the loop has had a turn.
        while daemon.process.errors.count(expected) == before:
            bus.flush(PATIENCE_S)
            assert time.monotonic() < deadline_s, daemon.process.errors


def test_a_running_daemon_takes_over_permissions_and_keeps_them_when_the_file_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text(READS)
    with Daemon("--config", str(file)) as daemon, clients.connect(daemon.url) as bus:
        subscription = bus.subscribe("a")
        bus.publish("a", 1, ack="accepted")
        file.write_text(READS.replace("subscribe", "subscrib"))
        hang_up(daemon, "credentials.kept what='permissions and quotas'")
        bus.publish("a", 2, ack="accepted")
        file.write_text(MUTE)
        hang_up(daemon, "credentials.reloaded what='permissions and quotas'")
        assert [subscription.next(PATIENCE_S).value for _ in range(2)] == [1, 2]
        with pytest.raises(clients.PermissionDenied, match="no subscribe permission at all"):
            subscription.next(PATIENCE_S)
        with pytest.raises(clients.PermissionDenied):
            bus.subscribe("a")
        file.write_text(READS)
        hang_up(daemon, "credentials.reloaded what='permissions and quotas'")
        bus.subscribe("a").close()


def test_a_daemon_without_a_file_lives_through_a_hangup() -> None:
    with Daemon() as daemon, clients.connect(daemon.url) as bus:
        hang_up(daemon, "credentials.reloaded what='permissions and quotas'")
        assert bus.publish("a", 1, ack="accepted") == 1
