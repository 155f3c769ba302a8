"""Passing connections from worker to worker: whose a hello is, what is passed, and what is left behind."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.limits import STRANGER_BYTES_MAX, WORKER_HELLO_BYTES_MAX
from broker.protocol.bodies import Hello, Refusal, Welcome
from broker.protocol.handshake import encode_greeting
from broker.server_seat import Doors, Seat
from broker.transport.addresses import parse
from broker.transport.sockets import SocketListener
from broker.transport.tcp import TcpTransport
from broker.transport.tls.hello import protocol_of
from broker.transport.unix import UnixTransport
from tests.clients.serving import PATIENCE_S, ServingThread
from tests.descriptors import opened
from tests.system.workers import answer, wait_until
from tests.transport.hellos import spoken

NEVER_S = 3600.0


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[list[SocketListener]]:
    made = [
        TcpTransport().listen(parse("tcp://127.0.0.1:0")),
        UnixTransport().listen(parse(f"unix://{tmp_path}/bus.sock")),
    ]
    assert all(isinstance(listener, SocketListener) for listener in made)
    yield [listener for listener in made if isinstance(listener, SocketListener)]
    for listener in made:
        listener.close()


@pytest.fixture
def seats(listeners: list[SocketListener]) -> Iterator[list[Seat]]:
    doors = Doors(3)
    yield [Seat(number, listeners, doors) for number in range(3)]
    doors.close()


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_a_hello_says_whose_it_is(seats: list[Seat], worker: int) -> None:
    said = encode_greeting(Hello("a", worker=worker)) + b"and more"
    for scheme in ("tcp", "unix"):
        assert [seat.worker_of(said, scheme) for seat in seats] == [worker] * 3


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_over_tls_what_stands_in_the_clear_says_whose_it_is(seats: list[Seat], worker: int) -> None:
    assert [seat.worker_of(spoken(protocol_of(worker)), "tls") for seat in seats] == [worker] * 3
    assert [seat.worker_of(spoken(), "tls") for seat in seats] == [0] * 3
    for said in (spoken(protocol_of(3)), b"rubbish", encode_greeting(Hello("a", worker=worker))):
        assert [seat.worker_of(said, "tls") for seat in seats] == [0, 1, 2]


@pytest.mark.parametrize(
    "said",
    [
        encode_greeting(Hello("old")),
        encode_greeting(Hello("beyond", worker=3)),
        encode_greeting(Hello("long", token="t" * WORKER_HELLO_BYTES_MAX, worker=1))[:WORKER_HELLO_BYTES_MAX],
        encode_greeting(Welcome(1, "b", 2, 3, 4, 5, 6)),
        b"rubbish",
    ],
)
def test_what_cannot_be_passed_on_stays_where_it_is(seats: list[Seat], said: bytes) -> None:
    assert [seat.worker_of(said, "tcp") for seat in seats] == [0, 1, 2]


def test_who_cannot_have_a_session_is_told_why(seats: list[Seat]) -> None:
    seat = seats[1]
    assert seat.problem(Hello("a", worker=1)) == seat.problem(Hello("a", worker=1, workers=3)) == ""
    assert "the 3 workers of this broker, of which this client knows nothing" in seat.problem(Hello("old"))
    assert "has 3 workers, and the client was told of 4" in seat.problem(Hello("a", worker=1, workers=4))
    assert "worker 1 of 3, and the hello for worker 7" in seat.problem(Hello("a", worker=7))


def test_a_connection_arrives_with_all_that_was_said_over_it(
    seats: list[Seat], listeners: list[SocketListener]
) -> None:
    first, second = socket.socketpair()
    with first, second:
        first.sendall(b"hello")
        assert seats[0].give(2, second, listeners[1])
        assert seats[1].take() is None
        taken = seats[2].take()
        assert taken is not None
        listener, sock = taken
        with sock:
            assert listener is listeners[1]
            assert sock.recv(64) == b"hello"
            second.close()
            sock.sendall(b"welcome")
            assert first.recv(64) == b"welcome"
        assert first.recv(64) == b""
        assert seats[2].take() is None


def test_a_full_door_lets_nobody_more_in_until_somebody_was_taken(
    seats: list[Seat], listeners: list[SocketListener]
) -> None:
    before = len(opened())
    first, second = socket.socketpair()
    with first, second:
        waiting = 0
        while seats[0].give(1, second, listeners[waiting % 2]):
            waiting += 1
            assert waiting < 100_000
        assert waiting > 50
        assert not seats[2].give(1, second, listeners[0])
        for number in range(waiting):
            taken = seats[1].take()
            assert taken is not None
            assert taken[0] is listeners[number % 2]
            taken[1].close()
        assert seats[2].give(1, second, listeners[0])
        taken = seats[1].take()
        assert taken is not None
        taken[1].close()
    assert len(opened()) <= before


def test_who_waits_at_a_door_that_is_closed_is_cut_off(listeners: list[SocketListener]) -> None:
    doors = Doors(2)
    seat = Seat(0, listeners, doors)
    first, second = socket.socketpair()
    with first:
        first.settimeout(60.0)
        with second:
            assert seat.give(1, second, listeners[0])
        doors.close()
        assert first.recv(64) == b""


def test_a_server_keeps_for_another_worker_whom_that_has_no_room_for(
    seats: list[Seat], listeners: list[SocketListener]
) -> None:
    hello = encode_greeting(Hello("patient", worker=1))
    filler, other = socket.socketpair()
    with filler, other:
        waiting = 0
        while seats[0].give(1, other, listeners[0]):
            waiting += 1
        with ServingThread("tcp://127.0.0.1:0", seat=seats[0], hello_timeout_s=3600.0) as broker:
            strangers = broker.server._strangers
            with socket.create_connection((listeners[0].address.host, listeners[0].address.port), PATIENCE_S) as sock:
                sock.sendall(hello)
                wait_until(lambda: bool(broker.call(lambda: len(strangers._delayed))))
                for _ in range(waiting):
                    taken = seats[1].take()
                    assert taken is not None
                    taken[1].close()
                # It comes with one of the next ticks.
                wait_until(lambda: not broker.call(lambda: len(strangers)))
                taken = seats[1].take()
                assert taken is not None
                with taken[1] as arrived:
                    assert arrived.recv(4096) == hello
                assert broker.call(lambda: len(broker.server.state.arrivals.half_open)) == 0
                assert not broker.call(lambda: broker.server.state.arrivals._by_address)


def test_a_server_waits_for_the_rest_of_a_long_hello_before_it_passes_it_on(
    seats: list[Seat], listeners: list[SocketListener]
) -> None:
    hello = encode_greeting(Hello("long", token="t" * (WORKER_HELLO_BYTES_MAX - 200), worker=1))
    assert STRANGER_BYTES_MAX < len(hello) < WORKER_HELLO_BYTES_MAX
    place = listeners[0].address.host, listeners[0].address.port
    with (
        ServingThread("tcp://127.0.0.1:0", seat=seats[0], hello_timeout_s=3600.0) as broker,
        socket.create_connection(place, PATIENCE_S) as sock,
    ):
        sock.sendall(hello[:-1])
        wait_until(lambda: bool(broker.call(lambda: len(broker.server._strangers))))
        sock.sendall(hello[-1:])
        wait_until(lambda: not broker.call(lambda: len(broker.server._strangers)))
        taken = seats[1].take()
        assert taken is not None
        with taken[1] as arrived:
            assert arrived.recv(WORKER_HELLO_BYTES_MAX) == hello


def test_whom_their_worker_has_no_room_for_in_time_is_told_so(
    seats: list[Seat], listeners: list[SocketListener]
) -> None:
    filler, other = socket.socketpair()
    with filler, other:
        while seats[0].give(1, other, listeners[0]):
            pass
        place = listeners[0].address.host, listeners[0].address.port
        with (
            ServingThread("tcp://127.0.0.1:0", seat=seats[0], hello_timeout_s=NEVER_S) as broker,
            socket.create_connection(place, PATIENCE_S) as sock,
        ):
            sock.sendall(encode_greeting(Hello("hasty", worker=1)))
            wait_until(lambda: broker.call(lambda: len(broker.server._strangers._delayed)) == 1)
            broker.call(broker.server.state.arrivals.tick, time.monotonic_ns() + int(2 * NEVER_S * 1e9))
            refusal = answer(sock)
            assert isinstance(refusal, Refusal)
            assert "is away, or overloaded; try again" in refusal.reason
            wait_until(lambda: not broker.call(lambda: len(broker.server._strangers._delayed)))


def test_a_server_lets_in_who_was_passed_on_to_it(seats: list[Seat], listeners: list[SocketListener]) -> None:
    with ServingThread("tcp://127.0.0.1:0", seat=seats[2]) as broker:
        for listener, (near, far) in zip(listeners, (tcp_pair(), socket.socketpair()), strict=True):
            with near, far:
                near.settimeout(PATIENCE_S)
                near.sendall(encode_greeting(Hello("visitor", worker=2)))
                assert seats[0].give(2, far, listener)
                far.close()
                welcome = answer(near)
                assert isinstance(welcome, Welcome)
                assert welcome.workers == 3
        # Somebody who has gone while they were passed on.
        near, far = tcp_pair()
        with near, far:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            near.close()
            assert seats[0].give(2, far, listeners[0])
        broker.wait_until_idle()
        wait_until(lambda: not broker.call(lambda: len(broker.server._strangers)))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        return near, listening.accept()[0]


def test_a_listener_of_another_process_leaves_its_file(listeners: list[SocketListener]) -> None:
    _, local = listeners
    local.inherited()
    path = Path(local.address.path)
    local.close()
    assert path.is_socket()
    path.unlink()
