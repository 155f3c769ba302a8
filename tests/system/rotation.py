"""Certificates are replaced again and again under load, in a real daemon, and nobody notices.

    python -m tests.system.rotation 100

Each time the broker gets a new certificate and somebody's is revoked; a client that comes then sees the new one and is
let in with one that was made just before. A publisher and its subscribers have been connected since the beginning.
"""

from __future__ import annotations

import select
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import clients
from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority
from broker.transport import registry
from broker.transport.addresses import Address, parse
from tests.daemon import PATIENCE_S, Daemon

TOPIC = "numbers/trainer-0"


class Load:
    """A publisher and two subscribers; every message has to come to both, in order and on its first connection."""

    def __init__(self, url: str, folder: Path) -> None:
        self.reconnected: list[str] = []
        self.received = [0, 0]
        self._stopping = threading.Event()
        self._failures: list[str] = []
        self._buses = [
            clients.connect(
                url, name=name, tls=folder / name, on_reconnect=lambda told: self.reconnected.append(told.cause)
            )
            for name in ("trainer-0", "monitor-0", "monitor-1")
        ]
        subscriptions = [bus.subscribe(TOPIC) for bus in self._buses[1:]]
        self._readers = [
            threading.Thread(target=self._read, args=(place, subscription))
            for place, subscription in enumerate(subscriptions)
        ]
        self._publisher = threading.Thread(target=self._publish)
        self.published = 0
        for thread in (*self._readers, self._publisher):
            thread.start()

    def _publish(self) -> None:
        bus = self._buses[0]
        while not self._stopping.is_set():
            bus.publish(TOPIC, self.published)
            self.published += 1
        bus.publish(TOPIC, -1)
        bus.flush()

    def _read(self, place: int, subscription: clients.Subscription) -> None:
        while True:
            message = subscription.next(PATIENCE_S)
            if message.value == -1:
                return
            if message.value != self.received[place] or message.gap:
                self._failures.append(f"{message.value} where {self.received[place]} was due, gap {message.gap}")
                return
            self.received[place] += 1

    def end(self) -> None:
        """Stops, and waits for the last message."""
        self._stopping.set()
        for thread in (self._publisher, *self._readers):
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive(), "messages are missing"
        for bus in self._buses:
            bus.close()
        assert self._failures == []
        assert self.received == [self.published] * 2


def rotate(count: int) -> dict[str, int]:
    """Replaces certificates so often; returns what happened meanwhile.

    Raises:
        AssertionError: a connection was dropped, a message lost, or a new certificate not taken over.
    """
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        authority = CertificateAuthority.create(folder)
        for name, hosts in ((BROKER, LOCAL_HOSTS), ("trainer-0", ()), ("monitor-0", ()), ("monitor-1", ())):
            authority.issue(name, hosts=hosts, roles=() if hosts else (name.rpartition("-")[0],))
        flags = ("--certificates", str(folder / BROKER))
        with Daemon(*flags, listen=("tls://127.0.0.1:0",), admin="off") as daemon:
            load = Load(daemon.url, folder)
            try:
                for turn in range(count):
                    _rotate_once(daemon, authority, folder, turn)
            finally:
                load.end()
            closed = [line for line in daemon.errors.splitlines() if "session.closed" in line]
            dropped = [line for line in closed if "name='trainer-0'" in line or "name='monitor" in line]
            assert all("(code 1)" in line for line in dropped), dropped
            assert load.reconnected == []
            return {"rotations": count, "messages": load.published, "dropped": len(load.reconnected)}


def _rotate_once(daemon: Daemon, authority: CertificateAuthority, folder: Path, turn: int) -> None:
    assert daemon.process is not None
    _, issued = authority.issue(BROKER, hosts=LOCAL_HOSTS)
    authority.issue("visitor")
    authority.issue("thief")
    authority.revoke("thief")
    daemon.process.signal(signal.SIGHUP)
    address = parse(f"{daemon.url}?certificates={folder / 'visitor'}")
    deadline_s = time.monotonic() + PATIENCE_S
    while (serial := _shown(address)) != issued.serial:
        assert time.monotonic() < deadline_s, f"turn {turn}: the broker shows {serial}, not {issued.serial}"
    clients.connect(daemon.url, name="visitor", tls=folder / "visitor").close()
    try:
        clients.connect(daemon.url, name="thief", tls=folder / "thief").close()
    except clients.PermissionDenied:
        return
    raise AssertionError(f"turn {turn}: somebody whose certificate was revoked was let in")


def _shown(address: Address) -> str:
    """The number of the certificate that the broker shows to somebody who comes now."""
    with registry.connect(address, PATIENCE_S) as connection:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        while connection.opening:
            poll.poll(PATIENCE_S * 1000)
            connection.receive_into([])
        certificate = connection.peer_certificate
        assert certificate is not None
        return certificate.serial


if __name__ == "__main__":
    print(rotate(int(sys.argv[1])))
