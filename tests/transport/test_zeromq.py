"""What the ZeroMQ transport promises beyond the contract: strangers, bounds, peers that vanish, keys, forks, exits."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
import zmq.auth

from broker.errors import ConnectError, ConnectionClosed, InvalidValue, ListenError
from broker.limits import MIB
from broker.transport import Connection, Listener, connect, listen
from broker.transport.zeromq.bounds import MESSAGE_BYTES_MAX, MESSAGE_CHARGE_BYTES, WINDOW_BYTES
from broker.transport.zeromq.messages import HEADER, HEADER_BYTES, OPEN, Kind, reason_of
from broker.transport.zeromq.sockets import end_of
from broker.transport.zeromq.stream import put_parts
from tests.descriptors import opened

from .driving import PATIENCE_S, accept, fill, is_ready, receive_exactly, receive_until_closed, send_all, wait_readable

STEP_MS = 5


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listen("zmq+tcp://127.0.0.1:0") as listening:
        yield listening


class Stranger:
    """A plain DEALER at a listener."""

    def __init__(self, listener: Listener, identity: bytes = b"") -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        if identity:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        self._listener = listener
        self.connect()

    def connect(self) -> None:
        self.socket.connect(f"tcp://127.0.0.1:{self._listener.address.port}")

    def send(self, *parts: bytes) -> None:
        self.socket.send_multipart(parts)

    def answer(self) -> tuple[int, str]:
        """The kind of the next message for it, and the reason in that; whatever waits is pumped meanwhile."""
        assert self.is_answered(PATIENCE_S), "no answer"
        message = self.socket.recv()
        return message[0], reason_of(message)

    def is_answered(self, patience_s: float) -> bool:
        """Whether there is a message for it, in a time; whatever waits is pumped meanwhile."""
        deadline_s = time.monotonic() + patience_s
        while not self.socket.poll(STEP_MS):
            if time.monotonic() >= deadline_s:
                return False
            assert self._listener.accept() is None
        return True

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def pump_until(listener: Listener, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Lets the listener take in what comes until its log has a text."""
    deadline_s = time.monotonic() + PATIENCE_S
    while text not in caplog.text:
        assert time.monotonic() < deadline_s, f"{text!r} is not in {caplog.text!r}"
        is_ready(listener.fileno(), zmq.POLLIN, STEP_MS / 1000)
        assert listener.accept() is None


def still_works(listener: Listener) -> None:
    with connect(listener.address, PATIENCE_S) as dialled, accept(listener) as accepted:
        send_all(dialled, [b"well"])
        assert receive_exactly(accepted, 4) == b"well"


RUBBISH = {
    "empty": (b"",),
    "short": (b"hello",),
    "unknown kind": (b"\x09" + bytes(8),),
    "another version": (HEADER.pack(Kind.OPEN, 7),),
    "parts": (b"", b"GET /", b"x" * 1000),
}


@pytest.mark.parametrize("parts", RUBBISH.values(), ids=RUBBISH)
def test_a_stranger_is_told_once_and_stands_in_the_log_once(
    listener: Listener, caplog: pytest.LogCaptureFixture, parts: tuple[bytes, ...]
) -> None:
    with caplog.at_level(logging.WARNING), Stranger(listener) as stranger:
        for _ in range(3):
            stranger.send(*parts)
        kind, reason = stranger.answer()
        still_works(listener)
    assert kind == Kind.RESET
    assert "tensorbus" in reason
    assert caplog.text.count("zeromq.stranger") == 1


def test_bytes_without_a_connection_are_answered_and_not_logged(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    with Stranger(listener) as stranger:
        stranger.send(HEADER.pack(Kind.DATA, 0) + b"x")
        assert stranger.answer() == (Kind.RESET, "there is no connection; it was closed, or never opened")
    assert caplog.text == ""


@pytest.mark.parametrize(
    "line",
    [b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", b"SSH-2.0-stranger\r\n", b"\xff\x00nonsense" * 20],
    ids=["HTTP", "SSH", "nearly"],
)
def test_what_does_not_speak_zeromq_is_cut_off_and_logged(
    listener: Listener, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", listener.address.port)) as plain:
        plain.sendall(line)
        with suppress(OSError):
            # It may have been cut off already.
            plain.shutdown(socket.SHUT_WR)
        pump_until(listener, caplog, "zeromq.stranger")
    still_works(listener)


def test_a_peer_of_an_old_zmtp_is_told_like_any_stranger(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    routing_id = b"\x01\x00"
    for message in (b"rubbish", OPEN):
        with socket.create_connection(("127.0.0.1", listener.address.port)) as plain:
            plain.sendall(routing_id + bytes([len(message) + 1, 0]) + message)
            pump_until(listener, caplog, "peer=zmq+tcp://gone")
        caplog.clear()
    still_works(listener)


def test_a_part_that_is_too_long_ends_its_link_and_no_other(listener: Listener) -> None:
    with connect(listener.address, PATIENCE_S) as dialled, accept(listener) as accepted:
        with Stranger(listener) as stranger:
            stranger.send(OPEN)
            opened = accept(listener)
            stranger.send(HEADER.pack(Kind.DATA, 0), bytes(MESSAGE_BYTES_MAX + HEADER_BYTES + 1))
            received, error = receive_until_closed(opened)
            opened.close()
        assert received == b""
        assert "the peer" in error.reason
        send_all(dialled, [b"unharmed"])
        assert receive_exactly(accepted, 8) == b"unharmed"


def position_after(*lengths: int) -> int:
    return sum(length + MESSAGE_CHARGE_BYTES for length in lengths)


FAULTS = {
    "missing": ([HEADER.pack(Kind.DATA, position_after(5)) + b"later"], "something is missing"),
    "repeated": ([HEADER.pack(Kind.DATA, 0) + b"twice"] * 2, "or repeated"),
    "opened twice": ([OPEN], "opened another connection"),
    "end at another place": ([HEADER.pack(Kind.END, 99)], "something is missing"),
    "malformed": ([b"what?"], "this one has 5"),
}


@pytest.mark.parametrize(("messages", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_fault_ends_the_connection(listener: Listener, messages: list[bytes], reason: str) -> None:
    with Stranger(listener) as stranger:
        stranger.send(OPEN)
        with accept(listener) as accepted:
            for message in messages:
                stranger.send(message)
            _, error = receive_until_closed(accepted)
            assert reason in error.reason
            with pytest.raises(ConnectionClosed):
                accepted.send([b"x"])
        if messages == [OPEN]:
            accept(listener).close()
    still_works(listener)


def test_a_peer_that_ignores_its_window_is_cut_off(listener: Listener) -> None:
    with Stranger(listener) as stranger:
        stranger.send(OPEN)
        with accept(listener) as accepted:
            position, block = 0, bytes(MIB)
            for _ in range(WINDOW_BYTES // MIB + 2):
                stranger.send(HEADER.pack(Kind.DATA, position), block)
                position += position_after(MIB)
            kind, reason = stranger.answer()
            assert kind == Kind.RESET
            assert "was granted" in reason
            received, _ = receive_until_closed(accepted)
            assert len(received) <= WINDOW_BYTES


def test_a_grant_without_bound_does_not_make_more_wait_than_a_window(listener: Listener) -> None:
    with Stranger(listener) as stranger:
        stranger.send(OPEN)
        with accept(listener) as accepted:
            stranger.send(HEADER.pack(Kind.GRANT, 2**63))
            stranger.send(HEADER.pack(Kind.DATA, 0) + b"!")
            assert receive_exactly(accepted, 1) == b"!"
            assert len(fill(accepted)) <= WINDOW_BYTES + MESSAGE_BYTES_MAX


class Given:
    """What a ZeroMQ socket is given."""

    def __init__(self) -> None:
        self.parts: list[object] = []

    def send(self, part: object, flags: int) -> None:
        self.parts.append(part)


def test_long_parts_are_lent_as_they_came_and_passed_on_as_they_are(listener: Listener) -> None:
    payload, scratch = os.urandom(100_000), memoryview(bytearray(4096))
    with connect(listener.address, PATIENCE_S) as dialled, accept(listener) as accepted:
        send_all(dialled, [b"head", payload, b"tail", payload])
        while not (size := accepted.receive_into([scratch])):
            wait_readable(accepted)
        assert (size, scratch[:4]) == (4, b"head")
        assert accepted.lend(len(payload) - 1) is None
        lent = accepted.lend(len(payload))
        assert accepted.receive_into([lent, scratch]) == len(payload) + 4
        assert (lent, scratch[:4]) == (payload, b"tail")
        assert accepted.lend(len(payload)) == payload
        assert receive_exactly(accepted, len(payload)) == payload, "what was lent and not taken is copied"
        assert accepted.lend(len(payload)) is None
        for passes_on, kinds in ((True, (bytes, zmq.Frame, memoryview)), (False, (bytes, memoryview, memoryview))):
            given = Given()
            put_parts(given, [b"x", lent, lent[1:]], passes_on=passes_on)
            assert tuple(map(type, given.parts)) == kinds
        send_all(accepted, [b"x", lent, lent[1:]])
        assert receive_exactly(dialled, 2 * len(payload)) == b"x" + payload + payload[1:]
        assert lent == payload


def test_of_a_long_part_that_was_taken_in_part_nothing_is_lent(listener: Listener) -> None:
    payload = os.urandom(100_000)
    with connect(listener.address, PATIENCE_S) as dialled, accept(listener) as accepted:
        send_all(dialled, [payload])
        assert receive_exactly(accepted, 1) == payload[:1]
        assert [accepted.lend(len(payload) - taken) for taken in (0, 1)] == [None, None]
        assert receive_exactly(accepted, len(payload) - 1) == payload[1:]


def test_a_peer_that_comes_back_under_its_name_does_not_go_on_where_it_was(listener: Listener) -> None:
    with Stranger(listener, b"named") as stranger:
        stranger.send(OPEN)
        accepted = accept(listener)
        stranger.send(HEADER.pack(Kind.DATA, 0) + b"first")
        assert receive_exactly(accepted, 5) == b"first"
    assert receive_until_closed(accepted)[0] == b""
    accepted.close()
    again, deadline_s = Stranger(listener, b"named"), time.monotonic() + PATIENCE_S
    again.send(HEADER.pack(Kind.DATA, position_after(5)) + b"second")
    # ZeroMQ does not listen to a second peer of a name before it has forgotten the first one, and tells nobody when.
    while not again.is_answered(1.0) and time.monotonic() < deadline_s:
        again.socket.close()
        again = Stranger(listener, b"named")
        again.send(HEADER.pack(Kind.DATA, position_after(5)) + b"second")
    with again:
        assert again.answer() == (Kind.RESET, "there is no connection; it was closed, or never opened")


def test_a_killed_process_is_noticed(listener: Listener) -> None:
    child = os.fork()
    if not child:
        try:
            with connect(listener.address, PATIENCE_S) as dialled:
                dialled.send([b"alive"])
                signal.pause()
        finally:
            os._exit(1)
    try:
        with accept(listener) as accepted:
            assert receive_exactly(accepted, 5) == b"alive"
            os.kill(child, signal.SIGKILL)
            assert receive_until_closed(accepted)[0] == b""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_that_disowns_it_does_not_keep_the_link_open(listener: Listener) -> None:
    """The child lives on when its parent is killed, and the peer sees the parent's end all the same."""
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:
        try:
            dialled = connect(listener.address, PATIENCE_S)
            child = os.fork()
            if not child:
                dialled.disown()
                assert dialled.closed
                with connect(listener.address, PATIENCE_S) as own:
                    own.send([b"mine"])
                    os.write(writing, str(os.getpid()).encode())
                    signal.pause()
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    child = 0
    try:
        first, second = accept(listener), accept(listener)
        child = int(os.read(reading, 20))
        os.kill(parent, signal.SIGKILL)
        assert receive_until_closed(first)[0] == b""
        assert receive_exactly(second, 4) == b"mine"
        first.close()
        second.close()
    finally:
        os.close(reading)
        for process in (parent, child):
            if process:
                os.kill(process, signal.SIGKILL)
        os.waitpid(parent, 0)


def test_a_watched_listener_serves_the_connections_and_a_closed_one_leaves_them_to_themselves(
    listener: Listener,
) -> None:
    listener.stays_watched()
    with connect(listener.address, PATIENCE_S) as dialled, accept(listener) as accepted:
        send_all(dialled, [b"one"])
        wait_readable(listener)
        while not is_ready(accepted.fileno(), zmq.POLLIN):
            assert listener.accept() is None
        assert receive_exactly(accepted, 3) == b"one"
        listener.close()
        send_all(dialled, [b"two"])
        assert receive_exactly(accepted, 3) == b"two"


def test_the_file_of_an_ipc_listener_lets_only_its_owner_in_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    with listen(f"zmq+ipc://{path}"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the keys of a broker, a client and somebody else."""
    for name in ("broker", "client", "other"):
        zmq.auth.create_certificates(tmp_path, name)
    return tmp_path


def test_curve_keys_open_a_link_to_their_listener_alone(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    with listen(f"zmq+tcp://127.0.0.1:0?curve={keys}/broker.key_secret") as listener:
        base = f"zmq+tcp://127.0.0.1:{listener.address.port}"
        for options in ("", f"&key={keys}/client.key_secret"):
            with (
                connect(f"{base}?curve={keys}/broker.key{options}", PATIENCE_S) as dialled,
                accept(listener) as accepted,
            ):
                send_all(dialled, [b"secret"])
                assert receive_exactly(accepted, 6) == b"secret"
        for wrong in (base, f"{base}?curve={keys}/other.key"):
            with pytest.raises(ConnectError, match="CURVE"):
                connect(wrong, 1.0)
        pump_until(listener, caplog, "our CURVE keys")
    public, secret = zmq.auth.load_certificate(keys / "broker.key_secret")
    assert secret is not None
    assert public.decode() not in caplog.text
    assert secret.decode() not in caplog.text


def test_a_listener_without_keys_turns_away_who_has_some(keys: Path, listener: Listener) -> None:
    with pytest.raises(ConnectError, match="CURVE"):
        connect(f"{listener.address}?curve={keys}/broker.key", 1.0)


WRONG_KEYS = {
    "missing": ("curve={keys}/nothing.key_secret", "no keys can be read"),
    "public": ("curve={keys}/broker.key", "has no secret key"),
    "dialler's": ("curve={keys}/broker.key_secret&key={keys}/client.key_secret", "for who dials"),
}


@pytest.mark.parametrize(("options", "problem"), WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_wrong_keys_of_a_listener_are_named_and_leave_nothing(keys: Path, options: str, problem: str) -> None:
    path = keys / "bus.sock"
    with pytest.raises(InvalidValue, match=problem):
        listen(f"zmq+ipc://{path}?{options.format(keys=keys)}")
    assert not path.exists()


def test_a_libzmq_without_curve_says_so(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda feature: False)
    with pytest.raises(InvalidValue, match="without CURVE"):
        listen(f"zmq+tcp://127.0.0.1:0?curve={keys}/broker.key_secret")


def test_a_broker_of_another_kind_is_told_from_one_that_is_not_there() -> None:
    unlike = r"nobody shook hands|does not speak ZeroMQ"
    with listen("tcp://127.0.0.1:0") as plain, pytest.raises(ConnectError, match=unlike):
        connect(f"zmq+tcp://127.0.0.1:{plain.address.port}", 0.5)
    with pytest.raises(ListenError, match="not an address of this machine"):
        listen("zmq+tcp://192.0.2.1:0")


SENDS_AND_ENDS = """
import sys
from broker.transport import connect
connection = connect(sys.argv[1], 60.0)
assert connection.send([bytes(3 << 20)]) == 3 << 20
{end}
"""


@pytest.mark.parametrize("end", ["connection.close()", "", "connection.close(); connect(sys.argv[1], 60.0)"])
def test_a_process_ends_at_once_and_what_it_sent_before_arrives(listener: Listener, end: str) -> None:
    with subprocess.Popen([sys.executable, "-c", SENDS_AND_ENDS.format(end=end), str(listener.address)]) as process:
        ends: list[Connection] = [accept(listener)]
        received, _ = receive_until_closed(ends[0])
        assert process.wait(PATIENCE_S) == 0
        ends[0].close()
    assert len(received) == 3 << 20


def test_zeromq_is_not_imported_before_an_address_asks_for_it() -> None:
    program = (
        "import sys, broker.cli.serve, clients, clients.aio; assert not [name for name in sys.modules if name == 'zmq']"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_number_of_a_link_that_was_given_to_another_file_names_no_end_and_leaks_no_descriptor() -> None:
    other = os.eventfd(0)
    try:
        before = len(opened())
        assert [end_of(other, "zmq+ipc", peer=peer) for peer in (True, False)] == ["zmq+ipc://gone"] * 2
        assert len(opened()) <= before
    finally:
        os.close(other)
