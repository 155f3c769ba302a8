"""How many connections the HTTP interface has, and that each asks soon."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

import clients
from broker.admin import listener as admin_listener
from broker.admin.http import Admin
from broker.config import Config
from broker.limits import HTTP_CONNECTIONS_MAX
from broker.server import Server
from tests.daemon import PATIENCE_S, Daemon

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon() as serving:
        yield serving


def place(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("/")[2].rpartition(":")
    return host, int(port)


def dial(stack: ExitStack, daemon: Daemon) -> socket.socket:
    return stack.enter_context(socket.create_connection(place(daemon.admin_url), PATIENCE_S))


def is_healthy(daemon: Daemon) -> bool:
    with urlopen(f"{daemon.admin_url}/healthz", timeout=PATIENCE_S) as response:
        return bool(response.read() == b"ok")


def test_connections_that_ask_nothing_keep_nobody_out_and_the_oldest_goes(daemon: Daemon) -> None:
    with ExitStack() as stack:
        crowd = [dial(stack, daemon) for _ in range(HTTP_CONNECTIONS_MAX + 20)]
        assert is_healthy(daemon)
        # The first have been closed, and the last have not.
        assert crowd[0].recv(1) == b""
        crowd[-1].sendall(HEAD)
        assert crowd[-1].recv(12) == b"HTTP/1.1 200"


def test_when_all_have_asked_the_new_one_goes(daemon: Daemon) -> None:
    with ExitStack() as stack:
        asked = [dial(stack, daemon) for _ in range(HTTP_CONNECTIONS_MAX)]
        for sock in asked:
            sock.sendall(HEAD)
            assert sock.recv(65_536).startswith(b"HTTP/1.1 200")
        late = dial(stack, daemon)
        assert late.recv(1) == b""
        asked[0].sendall(HEAD)
        assert asked[0].recv(12) == b"HTTP/1.1 200"
        asked.pop().close()
        # The place of one that has gone is free, once the daemon has seen that.
        while True:
            sock = dial(stack, daemon)
            try:
                sock.sendall(HEAD)
                if sock.recv(12) == b"HTTP/1.1 200":
                    break
            except ConnectionError:
                continue


def test_sessions_have_descriptors_however_many_come_to_the_http_interface(tmp_path: Path) -> None:
    with Daemon(listen=(f"unix://{tmp_path}/bus.sock",)) as daemon, ExitStack() as stack:
        assert daemon.process is not None
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (128, 128))
        for _ in range(200):
            dial(stack, daemon)
        buses = [stack.enter_context(clients.connect(daemon.url)) for _ in range(2)]
        with buses[1].subscribe("large") as arrays:
            buses[0].publish("large", np.arange(777_777))
            assert arrays.next(PATIENCE_S).value[-1] == 777_776
        assert is_healthy(daemon)
        assert "accept_paused" not in daemon.errors


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\nHost: loc"])
def test_who_does_not_ask_in_time_is_cut_off_and_who_does_may_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: bytes
) -> None:
    async def talk() -> bool:
        """Whether the one who asks was in time, and then may ask again when the other has been cut off."""
        server = Server(Config(listen=(f"inproc://{tmp_path}",)))
        server.start(server.config.listen)
        admin = Admin(server)
        host, port = place(await admin.start("127.0.0.1:0"))
        reader, writer = await asyncio.open_connection(host, port)
        stays, asks = await asyncio.open_connection(host, port)
        try:
            writer.write(said)
            asks.write(HEAD)
            try:
                answer = await stays.readuntil(b"\r\n\r\nok")
            except (asyncio.IncompleteReadError, ConnectionError):
                return False
            assert answer.startswith(b"HTTP/1.1 200")
            with suppress(ConnectionError):
                assert await reader.read() == b""
            asks.write(HEAD)
            assert (await stays.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
            return True
        finally:
            for each in (writer, asks):
                each.close()
                with suppress(ConnectionError):
                    await each.wait_closed()
            await admin.stop()
            await server.stop()

    for ask_s in (0.2, 1.0, 5.0, 25.0):
        monkeypatch.setattr(admin_listener, "HTTP_ASK_S", ask_s)
        # On a busy machine the one who asks may be late too, but not by any time.
        if asyncio.run(talk()):
            return
    pytest.fail("who asks at once is cut off as well")
