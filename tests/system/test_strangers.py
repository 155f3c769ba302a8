"""Strangers at the door of a real daemon, many and of all kinds: the log says who, and clients notice nothing."""

from __future__ import annotations

import os
import re
import resource
import socket
import ssl
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

import clients
from broker.limits import MIB, STRANGERS_LOGGED_MAX
from broker.protocol.bodies import Hello
from broker.protocol.handshake import MAGIC, encode_greeting
from tests.daemon import PATIENCE_S, Daemon
from tests.fuzz.conversations import connect


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        while part := sock.recv(65_536):
            data += part
    return data


def wait_for(daemon: Daemon, words: str) -> str:
    """The line of the daemon's log that has these words, which may take a moment to be written."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        for line in daemon.errors.splitlines():
            if words in line:
                return line
        os.sched_yield()
    raise AssertionError(f"no {words!r} in {daemon.errors}")


def check_works(*buses: clients.Client) -> None:
    """Small and large messages go from the first client to the last."""
    with buses[-1].subscribe("works") as subscription:
        for value in (1, np.arange(100_000)):
            buses[0].publish("works", value)
            assert np.array_equal(subscription.next(PATIENCE_S).value, value)


def check_works_once_there_is_room(bus: clients.Client, watcher: clients.Client, heard: clients.Subscription) -> None:
    """What is kept is near the limit, and may be over it again after the broker has said that it is not."""
    while True:
        while heard.next(PATIENCE_S).value.get("level") != "normal":
            pass
        with suppress(clients.LimitExceeded):
            return check_works(bus, watcher)


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "this looks like HTTP;"),
        (b"SSH-2.0-scanner\r\n", "this looks like SSH"),
        (b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix", "this looks like pickle"),
        (b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00", "this looks like ZeroMQ"),
        (b"\x07rubbish" * 1000, "its first bytes are b'\\x07rubbish'"),
        (MAGIC + b"\x01\x00\x01\x00\xff\xff\xff\x7f", "hello of 2147483647 bytes is over the limit of 65536"),
    ],
)
def test_what_a_stranger_speaks_is_in_the_log(daemon: Daemon, said: bytes, logged: str) -> None:
    with clients.connect(daemon.url) as bus, connect(daemon.url) as stranger:
        stranger.sendall(said)
        read_all(stranger)
        line = wait_for(daemon, "server.stranger ")
        assert logged in line
        assert "peer=tcp://127.0.0.1:" in line
        check_works(bus)


def test_a_client_that_speaks_tls_is_named(daemon: Daemon) -> None:
    context = ssl.create_default_context()
    with clients.connect(daemon.url) as bus, connect(daemon.url) as stranger:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(stranger, server_hostname="localhost")
        assert "this looks like TLS; this port is not encrypted" in wait_for(daemon, "server.stranger ")
        check_works(bus)


def test_a_scan_of_ports_is_a_line_in_the_log_and_no_more(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        connect(daemon.url).close()
        assert "received_bytes=0" in wait_for(daemon, "server.stranger ")
        check_works(bus)


def test_the_log_does_not_grow_with_the_number_of_strangers(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        for _ in range(20 * STRANGERS_LOGGED_MAX):
            with connect(daemon.url) as stranger:
                stranger.sendall(b"rubbish!")
                read_all(stranger)
        check_works(bus)
    # A busy machine may take several times the ten seconds for which a bounded number of lines is written.
    lines = len(re.findall("server.stranger ", daemon.errors))
    assert STRANGERS_LOGGED_MAX <= lines <= 10 * STRANGERS_LOGGED_MAX


def test_connections_that_say_nothing_keep_nobody_out() -> None:
    with Daemon("--half-open-max", "40", "--sessions-max", "3", admin="off") as daemon, ExitStack() as stack:
        first = stack.enter_context(clients.connect(daemon.url))
        for number in range(200):
            stranger = stack.enter_context(connect(daemon.url))
            if number % 2:
                stranger.sendall(MAGIC[:1])
        second = stack.enter_context(clients.connect(daemon.url))
        check_works(first, second)
        assert "half_open_max: 41 is over the limit of 40" in wait_for(daemon, "half_open_max")


def test_connections_of_one_address_are_bounded_and_those_of_this_hosts_own_sockets_are_not(tmp_path: Path) -> None:
    listen = ("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus.sock")
    with Daemon("--connections-per-address-max", "3", listen=listen, admin="off") as daemon, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(daemon.urls[0]))
        with pytest.raises(clients.ConnectError, match="connections_per_address_max: 4 is over the limit of 3"):
            clients.connect(daemon.urls[0], shared_memory=False)
        check_works(*(stack.enter_context(clients.connect(daemon.urls[1])) for _ in range(4)))


def test_sessions_live_through_a_lack_of_descriptors_and_share_memory_meanwhile(tmp_path: Path) -> None:
    listen = ("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus.sock")
    with Daemon(listen=listen) as daemon, ExitStack() as stack:
        assert daemon.process is not None
        buses = [stack.enter_context(clients.connect(daemon.urls[1])) for _ in range(2)]
        check_works(*buses)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (256, 256))
        crowd = [stack.enter_context(connect(daemon.urls[0])) for _ in range(300)]
        for number, sock in enumerate(crowd):
            with suppress(ConnectionError):
                sock.sendall(encode_greeting(Hello(f"crowd-{number}")))
        assert "raise RLIMIT_NOFILE" in wait_for(daemon, "server.descriptors_scarce")
        refused = sum(b"descriptors" in sock.recv(65_536) for sock in crowd)
        assert 300 - 256 < refused < 300
        # A new length of array takes a new arena, and so descriptors of those in reserve.
        check_works(*buses)
        with buses[1].subscribe("large") as arrays:
            buses[0].publish("large", np.arange(777_777))
            assert arrays.next(PATIENCE_S).value[-1] == 777_776
        with urlopen(f"{daemon.admin_url}/healthz", timeout=PATIENCE_S) as response:
            assert response.read() == b"ok"
        for sock in crowd:
            sock.close()
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                check_works(stack.enter_context(clients.connect(daemon.urls[0], shared_memory=False)))
                break
            except clients.ConnectError:
                assert time.monotonic() < deadline_s
        assert "Traceback" not in daemon.errors


def own_bytes(daemon: Daemon) -> int:
    """What the daemon has resident of its own."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text(encoding="ascii")
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def test_a_daemon_stays_below_its_limit_of_memory_and_says_why_it_takes_no_more() -> None:
    with Daemon(admin="off") as daemon:
        limit_bytes = own_bytes(daemon) + 160 * MIB
    with (
        Daemon("--memory-max-bytes", str(limit_bytes), admin="off") as daemon,
        clients.connect(daemon.url, shared_memory=False) as bus,
        clients.connect(daemon.url, shared_memory=False) as watcher,
    ):
        events = watcher.subscribe("$sys/pressure")
        most_bytes, refused = 0, None
        for number in range(2000):
            try:
                bus.publish(f"flood/{number}", bytes(MIB))
                bus.flush(PATIENCE_S)
            except clients.LimitExceeded as error:
                refused = error
                break
            most_bytes = max(most_bytes, own_bytes(daemon))
        assert most_bytes < limit_bytes
        assert events.next(PATIENCE_S).value["level"] == "push_back"
        if refused is not None:
            assert refused.limit == "memory_max_bytes"
            assert refused.maximum <= limit_bytes
        assert daemon.running
        # What was kept for replay makes room, and then all goes on.
        check_works_once_there_is_room(bus, watcher, events)


@pytest.mark.timeout(120)
def test_quotas_of_tenants_that_add_up_to_more_than_there_is_stay_below_it(tmp_path: Path) -> None:
    names = ("blue", "green", "red")
    config = tmp_path / "tensorbus.toml"
    config.write_text('[tenants."*"]\nheld_bytes_max = "128MiB"\n', encoding="utf-8")
    with Daemon(admin="off") as daemon:
        limit_bytes = own_bytes(daemon) + 160 * MIB
    with (
        Daemon("--config", str(config), "--memory-max-bytes", str(limit_bytes), admin="off") as daemon,
        ExitStack() as stack,
    ):
        buses = [stack.enter_context(clients.connect(daemon.url, tenant=name, shared_memory=False)) for name in names]
        watchers = [
            stack.enter_context(clients.connect(daemon.url, tenant=name, shared_memory=False)) for name in names
        ]
        events = [watcher.subscribe("$sys/pressure") for watcher in watchers]
        most_bytes = 0
        # Each may keep 128 MiB, and is sent 120: by the quotas alone all 360 would be kept, where there are 160.
        for number in range(120):
            for bus in buses:
                with suppress(clients.LimitExceeded):
                    bus.publish(f"kept/{number}", bytes(MIB))
                    bus.flush(PATIENCE_S)
                most_bytes = max(most_bytes, own_bytes(daemon))
        assert most_bytes < limit_bytes
        assert daemon.running
        for bus, watcher, heard in zip(buses, watchers, events, strict=True):
            # All tenants are told, and go on when what is kept has made room.
            assert heard.next(PATIENCE_S).value["level"] == "push_back"
            check_works_once_there_is_room(bus, watcher, heard)
