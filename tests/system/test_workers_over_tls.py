"""Several workers behind one port at which TLS is spoken: which one is meant stands in the clear, and nothing else."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.limits import STRANGER_BYTES_MAX, WORKER_HELLO_BYTES_MAX
from broker.protocol.bodies import Hello, Refusal, Welcome
from broker.protocol.handshake import decode_greeting, encode_greeting
from broker.transport import registry
from broker.transport.addresses import for_worker, parse
from broker.transport.tls.contexts import dialler_context
from broker.transport.tls.hello import protocol_of
from clients import aio
from clients.connection.views import view
from tests.certificates import make_certificates
from tests.daemon import PATIENCE_S, Daemon
from tests.system.workers import topic_of, wait_until, worker_pids
from tests.transport.hellos import in_records

WORKERS = 2
TOPICS = [f"gradients/{number}" for number in range(12)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_certificates(tmp_path / "certificates")


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    with serve(folder) as serving:
        yield serving


@pytest.fixture
def trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The certificates of a client that may do everything, in the environment."""
    monkeypatch.setenv("TENSORBUS_TLS", str(folder / "broker"))
    return folder / "broker"


def serve(folder: Path, *arguments: str) -> Daemon:
    return Daemon(
        "--workers", str(WORKERS), "--certificates", str(folder / "broker"), *arguments,
        listen=("tls://127.0.0.1:0",), admin="off",
    )  # fmt: skip


def shown(url: str, certificates: Path, worker: int) -> str:
    """The number of the certificate that a worker shows to somebody who comes now."""
    address = for_worker(parse(f"{url}?certificates={certificates}"), worker)
    with registry.connect(address, PATIENCE_S) as connection:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        while connection.opening:
            poll.poll(PATIENCE_S * 1000)
            connection.receive_into([])
        assert connection.peer_certificate is not None
        return connection.peer_certificate.serial


def greet(
    url: str,
    certificates: Path,
    hello: Hello,
    named: int | None,
    cut: Callable[[bytes], list[bytes]] = lambda said: [said],
    others: Sequence[str] = (),
) -> Hello | Welcome | Refusal:
    """Says hello, naming a worker in the clear, with a ClientHello that is sent in pieces."""
    context = dialler_context(str(certificates))
    if named is not None:
        context.set_alpn_protocols([*others, protocol_of(named)])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    host, _, port = url.removeprefix("tls://").rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def until_done(step: Callable[[], object]) -> object:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65_536))

        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        for piece in cut(outgoing.read()):
            sock.sendall(piece)
        until_done(client.do_handshake)
        client.write(encode_greeting(hello))
        data = b""
        while (greeting := decode_greeting(memoryview(data))) is None:
            part = until_done(lambda: client.read(65_536))
            assert isinstance(part, bytes)
            assert part, "closed without a word"
            data += part
        return greeting[0]


# To who uses it, it is a broker.


def test_the_synchronous_client_finds_each_topic_and_group_at_its_worker(daemon: Daemon, trusted: Path) -> None:
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url) as other:
        every = other.subscribe("gradients/#")
        single = {topic: other.subscribe(topic) for topic in TOPICS}
        for topic in TOPICS:
            bus.publish(topic, topic, ack="accepted")
        assert {every.next(PATIENCE_S).value for _ in TOPICS} == set(TOPICS)
        assert [single[topic].next(PATIENCE_S).value for topic in TOPICS] == TOPICS
        array = np.arange(300_000, dtype="float32")
        for worker in range(WORKERS):
            topic = topic_of(worker, WORKERS, "answers")
            other.respond(topic, lambda request: request.value + 1)
            assert np.array_equal(bus.request(topic, array, timeout_s=PATIENCE_S).value, array + 1)
            name = topic_of(worker, WORKERS, "group")
            threads = []
            for each in (bus, other):
                threads.append(threading.Thread(target=reduce_with, args=(each, name)))
                threads[-1].start()
            for thread in threads:
                thread.join(PATIENCE_S)
                assert not thread.is_alive()


def reduce_with(bus: clients.Client, name: str) -> None:
    with bus.group(name, world_size=2, timeout_s=PATIENCE_S) as group:
        array = np.ones(1000)
        group.all_reduce(array, timeout_s=PATIENCE_S)
        assert array[0] == 2.0


def test_the_asynchronous_client_does_the_same(daemon: Daemon, trusted: Path) -> None:
    async def work() -> None:
        async with await aio.connect(daemon.url) as bus, await aio.connect(daemon.url) as other:
            every = await other.subscribe("gradients/#")
            for topic in TOPICS:
                await bus.publish(topic, topic, ack="accepted")
            assert {(await every.next(PATIENCE_S)).value for _ in TOPICS} == set(TOPICS)
            await other.respond("answers/+", lambda request: request.value + 1)
            for number in range(6):
                assert (await bus.request(f"answers/{number}", number, timeout_s=PATIENCE_S)).value == number + 1
            for worker in range(WORKERS):
                name = topic_of(worker, WORKERS, "group")
                joined = await asyncio.gather(*(each.group(name, world_size=2) for each in (bus, other)))
                arrays = [np.ones(10), np.ones(10)]
                await asyncio.gather(*(each.all_reduce(array) for each, array in zip(joined, arrays, strict=True)))
                assert [array[0] for array in arrays] == [2.0, 2.0]

    asyncio.run(work())


def test_a_certificate_says_who_somebody_is_at_every_worker(daemon: Daemon, folder: Path, trusted: Path) -> None:
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url, tls=folder / "trainer-0") as trainer:
        every = bus.subscribe("#")
        for worker in range(WORKERS):
            topic = topic_of(worker, WORKERS, "metrics/trainer-0")
            trainer.publish(topic, worker, ack="accepted")
            message = every.next(PATIENCE_S)
            assert (message.topic, message.value) == (topic, worker)
            assert message.sender.partition("/")[0] == "trainer-0"
            with pytest.raises(clients.PermissionDenied):
                trainer.publish(topic_of(worker, WORKERS, "metrics/trainer-1"), worker, ack="accepted")


def test_nobody_is_told_where_on_its_host_the_brokers_keys_lie(daemon: Daemon, trusted: Path) -> None:
    with clients.connect(daemon.url) as bus:
        assert [server["listeners"] for server in view(bus, "server")] == [[daemon.url]] * WORKERS


# The door.


def in_bytes(said: bytes) -> list[bytes]:
    return [said[place : place + 1] for place in range(len(said))]


def in_halves(said: bytes) -> list[bytes]:
    assert STRANGER_BYTES_MAX < len(said) < WORKER_HELLO_BYTES_MAX
    return [said[: len(said) // 2], said[len(said) // 2 :]]


def in_short_records(said: bytes) -> list[bytes]:
    return [in_records(said[5:], [1, 2, 1, 40, 100])]


@pytest.mark.parametrize("cut", [in_bytes, in_short_records], ids=["bytes", "records"])
def test_what_is_said_in_pieces_reaches_the_worker_that_it_names(
    daemon: Daemon, trusted: Path, cut: Callable[[bytes], list[bytes]]
) -> None:
    lives: dict[int, set[int]] = {}
    for worker in 2 * list(range(WORKERS)):
        welcome = greet(daemon.url, trusted, Hello("visitor", worker=worker), worker, cut)
        assert isinstance(welcome, Welcome)
        lives.setdefault(worker, set()).add(welcome.life)
    assert [len(each) for each in lives.values()] == [1] * WORKERS
    assert len(set.union(*lives.values())) == WORKERS


def test_a_long_client_hello_reaches_the_worker_that_it_names_at_its_end(daemon: Daemon, trusted: Path) -> None:
    # As one with keys of several post-quantum groups would be.
    others = [f"{number:0200}" for number in range(60)]
    for worker in 2 * list(range(WORKERS)):
        hello = Hello("long", worker=worker)
        assert isinstance(greet(daemon.url, trusted, hello, worker, in_halves, others), Welcome)


def test_who_names_no_worker_in_the_clear_comes_to_the_first_and_is_told_so(daemon: Daemon, trusted: Path) -> None:
    for _ in range(4):
        assert isinstance(greet(daemon.url, trusted, Hello("first", worker=0), None), Welcome)
        for hello, named in ((Hello("unnamed", worker=1), None), (Hello("lying", worker=0), 1)):
            refusal = greet(daemon.url, trusted, hello, named)
            assert isinstance(refusal, Refusal)
            assert f"this is worker {named or 0} of 2, and the hello for worker {hello.worker}" in refusal.reason
            assert "ALPN does not name the worker" in refusal.reason


def test_strangers_keep_nobody_out(daemon: Daemon, trusted: Path) -> None:
    with ExitStack() as stack:
        for number in range(60):
            sock = stack.enter_context(clients_socket(daemon.url))
            sock.sendall(
                (b"", b"\x16\x03\x01\x02", b"\x16\x03\x01\0\x05\x01\0\xff\xff", b"GET / HTTP/1.1\r\n\r\n")[number % 4]
            )
        with clients.connect(daemon.url) as bus:
            every = bus.subscribe("#")
            for topic in TOPICS:
                bus.publish(topic, topic)
            assert {every.next(PATIENCE_S).value for _ in TOPICS} == set(TOPICS)
    assert "Traceback" not in daemon.errors


def clients_socket(url: str) -> socket.socket:
    host, _, port = url.removeprefix("tls://").rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


# Files that change.


def test_every_worker_takes_over_new_certificates_and_revocations(daemon: Daemon, folder: Path, trusted: Path) -> None:
    from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority

    assert daemon.process is not None
    authority = CertificateAuthority(folder)
    with clients.connect(daemon.url, tls=folder / "trainer-0", reconnect_timeout_s=0.0) as trainer:
        for worker in range(WORKERS):
            trainer.publish(topic_of(worker, WORKERS, "metrics/trainer-0"), 1, ack="accepted")
        _, issued = authority.issue(BROKER, ("admin",), hosts=LOCAL_HOSTS)
        authority.revoke("trainer-0")
        daemon.process.signal(signal.SIGHUP)
        for worker in range(WORKERS):
            wait_until(lambda worker=worker: shown(daemon.url, trusted, worker) == issued.serial)
            with pytest.raises((clients.PermissionDenied, clients.ConnectionClosed)):
                publish_until_closed(trainer, topic_of(worker, WORKERS, "metrics/trainer-0"))
    with pytest.raises(clients.PermissionDenied, match="revoked"):
        clients.connect(daemon.url, tls=folder / "trainer-0")


def publish_until_closed(bus: clients.Client, topic: str) -> None:
    while True:
        bus.publish(topic, 1, ack="accepted", timeout_s=PATIENCE_S)


def test_a_worker_that_is_started_again_shows_the_certificate_that_there_is_then(folder: Path, trusted: Path) -> None:
    from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority

    with serve(folder) as daemon:
        assert daemon.process is not None
        _, issued = CertificateAuthority(folder).issue(BROKER, ("admin",), hosts=LOCAL_HOSTS)
        os.kill(worker_pids(daemon)[1], signal.SIGKILL)
        wait_until(lambda: "worker.started worker=1" in daemon.errors)
        # At once, and not when it has looked at its files for the second time.
        assert shown(daemon.url, trusted, 1) == issued.serial
