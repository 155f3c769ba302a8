"""Connections that have not said anything whole: no session, no harm, and whoever says hello gets in all the same."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import clients
from broker.limits import EXPIRED_AT_ONCE, HELLO_BODY_BYTES_MAX, KIB, STRANGER_BYTES_MAX
from broker.protocol.bodies import Hello, Refusal, Welcome
from broker.protocol.handshake import MAGIC, answer_to_stranger, decode_greeting, encode_greeting
from broker.transport.tls.contexts import dialler_context
from tests.clients.serving import ServingThread
from tests.daemon import PATIENCE_S
from tests.fuzz.conversations import connect

NEVER_S = 3600.0


def serving(**settings: object) -> ServingThread:
    return ServingThread("tcp://127.0.0.1:0", **{"hello_timeout_s": NEVER_S, **settings})


@pytest.fixture
def broker() -> Iterator[ServingThread]:
    with serving() as broker:
        yield broker


def wait_until(broker: ServingThread, holds: Callable[[], bool]) -> None:
    """Until something holds on the server's thread."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not broker.call(holds):
        assert time.monotonic() < deadline_s
        os.sched_yield()


def wait_for_half_open(broker: ServingThread, count: int) -> None:
    wait_until(broker, lambda: len(broker.server.state.arrivals.half_open) == count)


def sessions(broker: ServingThread) -> int:
    return int(str(broker.call(lambda: len(broker.server.state.sessions))))


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        while part := sock.recv(64 * KIB):
            data += part
    return data


def answer(sock: socket.socket) -> Hello | Welcome | Refusal:
    """What the broker answers to a hello."""
    data = b""
    while (greeting := decode_greeting(memoryview(data))) is None:
        part = sock.recv(64 * KIB)
        assert part, f"closed after {data!r}"
        data += part
    return greeting[0]


def test_who_says_nothing_has_no_session_and_keeps_nobody_out(broker: ServingThread) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(broker.url))
        wait_for_half_open(broker, 50)
        assert sessions(broker) == 0
        assert broker.call(broker.server.idle.is_set)
        with clients.connect(broker.url) as bus:
            bus.publish("a", 1)
            bus.flush(PATIENCE_S)
            assert sessions(broker) == 1
            assert broker.call(lambda: len(broker.server.state.arrivals.half_open)) == 50
    wait_for_half_open(broker, 0)
    wait_until(broker, lambda: not broker.server.state.arrivals._by_address)


def test_a_hello_may_come_a_byte_at_a_time(broker: ServingThread) -> None:
    hello = encode_greeting(Hello("slow"))
    with connect(broker.url) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(hello) - 1):
            sock.sendall(hello[position : position + 1])
            assert sessions(broker) == 0
        sock.sendall(hello[-1:])
        assert isinstance(answer(sock), Welcome)


@pytest.mark.parametrize("size", [STRANGER_BYTES_MAX, 16 * KIB, HELLO_BODY_BYTES_MAX - 100])
def test_a_hello_longer_than_what_waits_in_the_kernel_is_read(broker: ServingThread, size: int) -> None:
    with connect(broker.url) as sock:
        sock.sendall(encode_greeting(Hello("n" * size)))
        refusal = answer(sock)
        assert isinstance(refusal, Refusal)
        assert "name_bytes_max" in refusal.reason


def test_what_comes_with_the_hello_is_read_by_the_session(broker: ServingThread) -> None:
    with connect(broker.url) as sock:
        sock.sendall(encode_greeting(Hello("hasty")) + b"\xff" * 52)
        assert isinstance(answer(sock), Welcome)
        # The frame is none: the session says so, and closes.
        read_all(sock)
    wait_until(broker, lambda: not broker.server.state.sessions)


def test_who_says_hello_and_sends_nothing_more_is_answered(broker: ServingThread) -> None:
    with connect(broker.url) as sock:
        sock.sendall(encode_greeting(Hello("brief")))
        sock.shutdown(socket.SHUT_WR)
        assert isinstance(answer(sock), Welcome)


@pytest.mark.parametrize("said", [b"", MAGIC[:1], encode_greeting(Hello("half"))[:20]])
def test_whose_time_is_over_is_told_so(broker: ServingThread, said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), connect(broker.url) as sock:
        sock.sendall(said)
        wait_for_half_open(broker, 1)
        # Not a time in which a test that gets no processor has said nothing yet.
        broker.call(broker.server.state.arrivals.tick, time.monotonic_ns() + int(2 * NEVER_S * 1e9))
        assert read_all(sock) == answer_to_stranger(b"")
        wait_for_half_open(broker, 0)
    (line,) = [each for each in caplog.messages if each.startswith("server.stranger ")]
    assert f"received_bytes={len(said)} cause=no complete hello within {NEVER_S:g} s" in line


def test_when_the_time_of_many_is_over_at_once_all_of_them_go() -> None:
    with serving(hello_timeout_s=0.05) as broker, ExitStack() as stack:
        socks = [stack.enter_context(connect(broker.url)) for _ in range(20 * EXPIRED_AT_ONCE)]
        assert {read_all(sock) for sock in socks} == {answer_to_stranger(b"")}
        wait_for_half_open(broker, 0)


def test_the_oldest_of_too_many_is_told_why_it_has_to_go() -> None:
    with serving(half_open_max=3) as broker, ExitStack() as stack:
        first = stack.enter_context(connect(broker.url))
        for _ in range(3):
            stack.enter_context(connect(broker.url))
        refusal = answer(first)
        assert isinstance(refusal, Refusal)
        assert refusal.reason.startswith("half_open_max: 4 is over the limit of 3")
        wait_for_half_open(broker, 3)
        with clients.connect(broker.url):
            assert sessions(broker) == 1


def test_strangers_count_among_the_connections_of_their_address_until_they_go() -> None:
    with serving(connections_per_address_max=3) as broker:
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(connect(broker.url))
            wait_for_half_open(broker, 3)
            with connect(broker.url) as fourth:
                refusal = answer(fourth)
            assert isinstance(refusal, Refusal)
            assert "connections_per_address_max: 4 is over the limit of 3; 127.0.0.1 has them" in refusal.reason
        wait_for_half_open(broker, 0)
        with clients.connect(broker.url):
            assert broker.call(lambda: dict(broker.server.state.arrivals._by_address)) == {"127.0.0.1": 1}


def test_connections_that_are_reset_are_gone(broker: ServingThread) -> None:
    with ExitStack() as stack:
        for number in range(20):
            sock = stack.enter_context(connect(broker.url))
            if number % 2:
                sock.sendall(MAGIC[:3])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_for_half_open(broker, 20)
    wait_for_half_open(broker, 0)
    assert not broker.call(lambda: len(broker.server._strangers))


def test_a_fault_of_the_brokers_own_ends_one_of_them(
    broker: ServingThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    look_at = broker.server._strangers._look_at

    def fail(stranger: object, *, ended: bool) -> None:
        if stranger.socket.recv(1, socket.MSG_PEEK) == b"\x93" and stranger.id == 2:  # type: ignore[attr-defined]
            raise RuntimeError("a fault")
        look_at(stranger, ended=ended)

    monkeypatch.setattr(broker.server._strangers, "_look_at", fail)
    with connect(broker.url) as first, connect(broker.url) as second:
        wait_for_half_open(broker, 2)
        for sock in (second, first):
            sock.sendall(encode_greeting(Hello("a")))
        assert isinstance(answer(first), Welcome)
        assert read_all(second) == b""
    assert "a fault" in caplog.text


def test_a_broker_that_stops_closes_them() -> None:
    with serving() as broker:
        silent, talking = connect(broker.url), connect(broker.url)
        talking.sendall(MAGIC[:4])
        wait_for_half_open(broker, 2)
    with silent, talking:
        assert read_all(silent) == read_all(talking) == b""


# TLS.


def secure(certificates: Path) -> ServingThread:
    return ServingThread("tls://127.0.0.1:0", certificates=str(certificates / "broker"), hello_timeout_s=NEVER_S)


def plain(url: str) -> str:
    return url.partition("?")[0].replace("tls://", "tcp://")


def test_a_stranger_at_tls_is_a_socket_until_its_first_record_is_whole(certificates: Path) -> None:
    context = dialler_context(str(certificates / "trainer-0"))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    opening = outgoing.read()
    with secure(certificates) as broker, connect(plain(broker.url)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in opening[:-1]:
            sock.sendall(bytes([byte]))
            assert sessions(broker) == 0
        sock.sendall(opening[-1:])
        wait_until(broker, lambda: len(broker.server.state.sessions) == 1)
        # It is half open still, in the place that it had.
        assert broker.call(lambda: len(broker.server.state.arrivals.half_open)) == 1
        assert sock.recv(1) == b"\x16"
        sock.close()
        wait_for_half_open(broker, 0)


def test_who_does_not_speak_tls_at_a_tls_port_is_told_so(certificates: Path) -> None:
    with secure(certificates) as broker, connect(plain(broker.url)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert read_all(sock)[:1] == b"\x15"


def test_silent_connections_keep_nobody_from_tls(certificates: Path) -> None:
    with secure(certificates) as broker, ExitStack() as stack:
        for number in range(50):
            sock = stack.enter_context(connect(plain(broker.url)))
            if number % 2:
                sock.sendall(b"\x16\x03\x01")
        wait_for_half_open(broker, 50)
        url = broker.url.partition("?")[0] + f"?certificates={certificates / 'trainer-0'}"
        with clients.connect(url) as bus:
            bus.publish("digests/a", 1)
            bus.flush(PATIENCE_S)
            assert sessions(broker) == 1
