"""What is particular to tcp."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from broker.errors import ConnectError, ConnectionClosed, ListenError
from broker.transport import connect, listen, parse
from broker.transport.tcp import unpace
from tests.loopback import free_ports, own_host, refusing

from .driving import PATIENCE_S, accept, receive_exactly, receive_until_closed, send_all

Resolved = tuple[int, int, int, str, tuple[str, int]]


def option(descriptor: int, level: int, name: int) -> int:
    with socket.socket(fileno=socket.dup(descriptor)) as sock:
        return sock.getsockopt(level, name)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *targets: tuple[str, int]) -> None:
    def getaddrinfo(*_: object, **__: object) -> list[Resolved]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", target) for target in targets]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def congestion(sock: socket.socket) -> str:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode()


def pair(client_host: str, server_host: str, sockets: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection."""
    server = sockets.enter_context(socket.create_server((server_host, 0)))
    client = sockets.enter_context(socket.create_connection(server.getsockname(), source_address=(client_host, 0)))
    return client, sockets.enter_context(server.accept()[0])


def choose(sock: socket.socket, name: str) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except OSError as error:
        pytest.skip(f"the kernel does not let this process choose {name} ({error})")


def test_within_a_host_nothing_is_paced() -> None:
    with ExitStack() as sockets:
        for sock in pair("127.0.0.1", "127.0.0.1", sockets):
            choose(sock, "bbr")
            unpace(sock)
            assert congestion(sock) == "reno"


def test_what_is_not_paced_or_leaves_the_host_stays_as_the_host_has_it() -> None:
    with ExitStack() as sockets:
        for sock in pair("127.0.0.1", "127.0.0.1", sockets):
            choose(sock, "cubic")
            unpace(sock)
            assert congestion(sock) == "cubic"
        for sock in pair("127.0.0.1", "127.0.0.2", sockets):
            choose(sock, "bbr")
            unpace(sock)
            assert congestion(sock) == "bbr"


def test_both_ends_of_a_connection_within_a_host_are_as_good_as_unpaced() -> None:
    with (
        listen("tcp://127.0.0.1:0") as listener,
        connect(listener.address, PATIENCE_S) as near,
        accept(listener) as far,
    ):
        for end in (near, far):
            with socket.socket(fileno=socket.dup(end.fileno())) as sock:
                assert congestion(sock) != "bbr"


def test_a_socket_that_has_ended_is_left_alone() -> None:
    sock = socket.socket()
    sock.close()
    unpace(sock)
    assert sock.fileno() == -1


@pytest.fixture
def silent_target() -> Iterator[tuple[str, int]]:
    """An address that answers nobody: its backlog is full."""
    with ExitStack() as sockets:
        server = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()


def test_port_0_listens_at_a_free_port_and_tells_it() -> None:
    with listen("tcp://127.0.0.1:0") as first, listen("tcp://127.0.0.1:0") as second:
        assert first.address.port > 0
        assert first.address.port != second.address.port
        assert str(first.address) == f"tcp://127.0.0.1:{first.address.port}"


def test_both_ends_send_at_once_and_watch_the_peer() -> None:
    with (
        listen("tcp://127.0.0.1:0") as listener,
        connect(listener.address, PATIENCE_S) as dialled,
        accept(listener) as accepted,
    ):
        for end in (dialled, accepted):
            assert option(end.fileno(), socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert option(end.fileno(), socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_localhost_listens_where_127_0_0_1_is_dialled_and_keeps_its_name() -> None:
    with listen("tcp://localhost:0") as listener:
        assert listener.address.host == "localhost"
        with connect(f"tcp://127.0.0.1:{listener.address.port}", PATIENCE_S), accept(listener) as accepted:
            assert parse(accepted.local_address).host == "127.0.0.1"


def test_ipv6_addresses_stand_in_brackets() -> None:
    try:
        listener = listen("tcp://[::1]:0")
    except ListenError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with listener, connect(listener.address, PATIENCE_S) as dialled, accept(listener) as accepted:
        assert dialled.peer_address == f"tcp://[::1]:{listener.address.port}"
        assert accepted.peer_address == dialled.local_address
        send_all(dialled, [b"six"])
        assert receive_exactly(accepted, 3) == b"six"


def test_abort_resets_the_peer() -> None:
    with listen("tcp://127.0.0.1:0") as listener, connect(listener.address, PATIENCE_S) as dialled:
        accept(listener).abort()
        assert receive_until_closed(dialled)[1].reason == "the peer reset the connection"
        with pytest.raises(ConnectionClosed):
            dialled.send([b"x"])


def test_each_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("tcp://127.0.0.1:0") as listener, refusing() as target:
        resolve_to(monkeypatch, target, ("127.0.0.1", listener.address.port))
        with connect("tcp://cluster:4870", PATIENCE_S) as dialled:
            assert dialled.peer_address == str(listener.address)


def test_an_address_that_is_silent_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch, silent_target: tuple[str, int]
) -> None:
    with listen("tcp://127.0.0.1:0") as listener:
        resolve_to(monkeypatch, silent_target, ("127.0.0.1", listener.address.port))
        with connect("tcp://cluster:4870", 1.0) as dialled:
            assert dialled.peer_address == str(listener.address)


def test_when_all_addresses_of_a_host_fail_each_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, silent_target: tuple[str, int]
) -> None:
    with refusing() as target:
        resolve_to(monkeypatch, target, silent_target)
        with pytest.raises(ConnectError) as caught:
            connect("tcp://cluster:4870", 0.5)
    assert caught.value.address == "tcp://cluster:4870"
    assert f"tcp://127.0.0.1:{target[1]}: nobody listens there" in caught.value.reason
    assert f"tcp://127.0.0.1:{silent_target[1]}: no answer within" in caught.value.reason


def test_a_reason_that_all_addresses_of_a_host_share_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() as first, refusing() as second:
        resolve_to(monkeypatch, first, second)
        with pytest.raises(ConnectError) as caught:
            connect("tcp://cluster:4870", PATIENCE_S)
    assert caught.value.reason.count("nobody listens there") == 1


def test_a_dial_ends_at_its_time_out(silent_target: tuple[str, int]) -> None:
    host, port = silent_target
    started_s = time.monotonic()
    with pytest.raises(ConnectError, match="no answer within"):
        connect(f"tcp://{host}:{port}", 0.1)
    assert 0.05 < time.monotonic() - started_s < PATIENCE_S


def test_a_dial_without_time_left_fails_at_once(silent_target: tuple[str, int]) -> None:
    host, port = silent_target
    with pytest.raises(ConnectError, match="no answer within"):
        connect(f"tcp://{host}:{port}", -1.0)


class DialsFromItsTarget(socket.socket):
    """Gets the very port that it dials as its own, as the kernel does by chance once in a while."""

    def connect(self, target: tuple[str, int]) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.bind(target)
        super().connect(target)
        assert self.getpeername() == self.getsockname()


def test_a_dial_that_reaches_only_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    host = own_host()
    port, _ = free_ports(host)
    monkeypatch.setattr(socket, "socket", DialsFromItsTarget)
    with pytest.raises(ConnectError, match="nobody listens there"):
        connect(f"tcp://{host}:{port}", PATIENCE_S)


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_host_that_cannot_be_looked_up_is_told(host: str) -> None:
    with pytest.raises(ConnectError, match="cannot be looked up"):
        connect(f"tcp://{host}:4870", PATIENCE_S)
    with pytest.raises(ListenError, match="cannot be looked up"):
        listen(f"tcp://{host}:0")


def test_a_host_of_another_machine_cannot_be_listened_at() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
    with pytest.raises(ListenError, match="not an address of this machine") as caught:
        listen("tcp://192.0.2.1:0")
    assert caught.value.address == "tcp://192.0.2.1:0"
