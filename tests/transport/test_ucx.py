"""What the UCX transport promises beyond the contract: of peers that lie, stop or vanish, and of its processes.

A peer that lies is a plain socket that speaks what carriers say over the link, or a process that has UCX of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import pack

import pytest

from broker.errors import ConnectionClosed, InvalidValue
from broker.limits import MIB, UCX_RING_BYTES
from broker.transport import Connection, Listener, connect, listen
from tests.ucxx import MISSING, WITHOUT_UCXX

from .driving import (
    PATIENCE_S,
    accept,
    exchange,
    fill,
    receive_exactly,
    receive_until_closed,
    send_all,
    send_for_ever,
    wait_readable,
)

if WITHOUT_UCXX:
    pytest.skip(MISSING, allow_module_level=True)

from broker.transport.ucx.link import ADDRESS_BYTES_MAX, LENGTH, MAGIC, NOTE, Kind, Malformed, Notes, hello

PRELUDE = """
import os, signal, sys, time
from broker.transport import connect, listen
from tests.transport.driving import *
"""


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listen("ucx://127.0.0.1:0") as listening:
        yield listening


@contextmanager
def process(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process; it is killed at the end if it still runs."""
    command = [sys.executable, "-c", PRELUDE + program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def still_works(listener: Listener) -> None:
    with connect(listener.address, PATIENCE_S) as dialled:
        send_all(dialled, [b"well"])
        with accept(listener) as accepted:
            assert receive_exactly(accepted, 4) == b"well"


def carrier_ids() -> list[int]:
    """The processes that carry for this one."""
    from broker.transport.ucx.carriers import carriers

    parent = carriers.process_id
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def settles_at_carriers(count: int) -> bool:
    """Whether no more carriers are left, at once or when they have delivered what they had."""
    deadline_s = time.monotonic() + PATIENCE_S
    while len(carrier_ids()) > count and time.monotonic() < deadline_s:
        time.sleep(0.001)
    return len(carrier_ids()) <= count


def shared_by_ucx() -> list[str]:
    """The files of shared memory that UCX has made, of whatever process."""
    return [name for name in os.listdir("/dev/shm") if name.startswith("ucx")]


def mapped_by_anybody() -> set[str]:
    """The files of shared memory that some process has mapped."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            lines = maps.read_text(errors="replace").splitlines()
            found.update(line.rpartition("/dev/shm/")[2].split()[0] for line in lines if "/dev/shm/" in line)
    return found


# Peers that lie.


@contextmanager
def liar(listener: Listener, *said: bytes) -> Iterator[tuple[socket.socket, Connection]]:
    """A plain socket that has said something over a link, and the connection that was accepted from it."""
    with socket.create_connection((listener.address.host, listener.address.port)) as plain:
        plain.settimeout(PATIENCE_S)
        plain.sendall(b"".join(said))
        with accept(listener) as accepted:
            yield plain, accepted


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", b"\0" * 8, b"TBUSUCX9" + bytes(40)])
def test_for_a_stranger_no_process_is_made(listener: Listener, said: bytes) -> None:
    before = len(carrier_ids())
    with liar(listener, said) as (_, accepted):
        received, error = receive_until_closed(accepted)
        assert received == b""
        assert "does not speak as the end of a ucx:// address does" in error.reason
        assert len(carrier_ids()) <= before
        with pytest.raises(ConnectionClosed, match="does not speak"):
            accepted.send([b"x"])
    still_works(listener)


def test_a_silent_stranger_costs_no_process_and_nobody_waits_for_it(listener: Listener) -> None:
    with liar(listener, MAGIC[:3]) as (_, accepted):
        before = len(carrier_ids())
        assert accepted.receive_into([memoryview(bytearray(8))]) == 0
        still_works(listener)
        assert settles_at_carriers(before)


LIES = {
    "an unknown note": (pack("<BQ", 9, 0), "a note of kind 9"),
    "an address without bytes": (NOTE.pack(Kind.HELLO, 1) + LENGTH.pack(0), "has 0 bytes"),
    "an address that is too long": (NOTE.pack(Kind.HELLO, 1) + LENGTH.pack(60_000), str(ADDRESS_BYTES_MAX)),
    "reading what was not sent": (NOTE.pack(Kind.GRANT, 1), "it has read 1 bytes of 0"),
    "an end beyond the window": (NOTE.pack(Kind.END, UCX_RING_BYTES + 1), "it ends at"),
    "two ends": (NOTE.pack(Kind.END, 9) * 2, "it ends at"),
}


@pytest.mark.parametrize(("said", "reason"), LIES.values(), ids=LIES)
def test_a_lie_over_the_link_ends_the_connection_and_no_other(listener: Listener, said: bytes, reason: str) -> None:
    with liar(listener, MAGIC, said) as (_, accepted):
        assert reason in receive_until_closed(accepted)[1].reason
    still_works(listener)


def heard_address(plain: socket.socket) -> bytes:
    """The worker address that a carrier says, once it has something to send."""
    notes, heard = Notes(), []
    while not any(kind is Kind.HELLO for kind, _, _ in heard):
        heard += notes.split(plain.recv(65_536))
    return next(address for kind, _, address in heard if kind is Kind.HELLO)


def test_an_address_over_which_ucx_ends_its_process_ends_one_connection(listener: Listener) -> None:
    """`Assertion addr_version failed`, and abort(3), is what UCX answers a wrong first byte with."""
    with connect(listener.address, PATIENCE_S) as dialled, accept(listener) as other:
        send_all(dialled, [b"before"])
        assert receive_exactly(other, 6) == b"before"
        with liar(listener, MAGIC) as (plain, accepted):
            wait_readable(accepted)
            accepted.receive_into([])
            send_all(accepted, [b"to be sent"])
            address = heard_address(plain)
            plain.sendall(hello(1, bytes([address[0] ^ 0xFF]) + address[1:]))
            assert "the process that speaks UCX for this end has ended" in receive_until_closed(accepted)[1].reason
        send_all(dialled, [b"after"])
        assert receive_exactly(other, 5) == b"after"
    still_works(listener)


@pytest.mark.parametrize("seed", range(8))
def test_rubbish_for_an_address_ends_no_more_than_its_connection(listener: Listener, seed: int) -> None:
    rubbish = bytes((byte * 31 + seed * 97) % 256 for byte in range(40 * (seed + 1)))
    with liar(listener, MAGIC, hello(1, rubbish)) as (plain, accepted):
        send_until_lost = pytest.raises(ConnectionClosed)
        with send_until_lost:
            wait_readable(accepted)
            accepted.receive_into([])
            with suppress(OSError):
                # Whoever has read the rubbish may have closed it by now.
                plain.shutdown(socket.SHUT_WR)
            receive_until_closed(accepted)
            send_for_ever(accepted)
    still_works(listener)


LYING = """
import socket
# For all threads, UCX's too: it is waited for below.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
from broker.transport.ucx import link
from broker.transport.ucx.library import Channel
host, _, port = sys.argv[1].removeprefix("ucx://").rpartition(":")
plain = socket.create_connection((host, int(port)))
channel = Channel(loopback=True)
plain.sendall(link.MAGIC + link.hello(channel.tag, channel.address))
notes, heard = link.Notes(), []
while not heard:
    heard += notes.split(plain.recv(65536))
_, tag, address = heard[0]
channel.open(address, tag)
if "wait" in sys.argv:
    print("opened", flush=True)
    signal.sigwait({signal.SIGUSR1})
# UCX reads the memory when it wants to.
messages = [bytearray(size) for size in eval(sys.argv[2])]
sends = [channel.send(memoryview(message)) for message in messages]
channel.progress()
print("sent", flush=True)
plain.setblocking(False)
while True:
    channel.progress()
    try:
        if not plain.recv(4096):
            break
    except BlockingIOError:
        continue
    except ConnectionError:
        break
"""


@pytest.mark.parametrize("sizes", ["[10_000_000]", "[1_000_000] * 9", "[3_000_000, 3_000_000]"])
def test_a_peer_that_sends_more_than_it_was_granted_is_cut_off(listener: Listener, sizes: str) -> None:
    with process(LYING, str(listener.address), sizes), accept(listener) as accepted:
        while accepted.opening:
            wait_readable(accepted)
            accepted.receive_into([])
        send_all(accepted, [b"to be sent"])
        received, error = receive_until_closed_late(accepted)
        assert "are free" in error.reason
        assert len(received) <= UCX_RING_BYTES
        still_works(listener)


def receive_until_closed_late(connection: Connection) -> tuple[bytes, ConnectionClosed]:
    """As receive_until_closed, but takes nothing before the connection has failed: no room is made meanwhile."""
    try:
        while True:
            wait_readable(connection)
            connection.send([b"x"])
            connection.receive_into([])
    except ConnectionClosed:
        return receive_until_closed(connection)


def test_a_peer_that_dies_while_ucx_reads_its_memory_ends_one_connection(listener: Listener) -> None:
    """`process_vm_readv returned -1: No such process`, and abort(3), is what UCX does then."""
    with connect(listener.address, PATIENCE_S) as dialled, accept(listener) as other:
        send_all(dialled, [b"before"])
        assert receive_exactly(other, 6) == b"before"
        others = set(carrier_ids())
        with process(LYING, str(listener.address), "[1_000_000]", "wait") as peer, accept(listener) as accepted:
            while accepted.opening:
                wait_readable(accepted)
                accepted.receive_into([])
            send_all(accepted, [b"to be sent"])
            assert peer.stdout is not None
            assert peer.stdout.readline() == "opened\n"
            (reading,) = set(carrier_ids()) - others
            os.kill(reading, signal.SIGSTOP)
            peer.send_signal(signal.SIGUSR1)
            assert peer.stdout.readline() == "sent\n"
            peer.kill()
            peer.wait()
            os.kill(reading, signal.SIGCONT)
            assert receive_until_closed(accepted)[0] == b""
        send_all(dialled, [b"after"])
        assert receive_exactly(other, 5) == b"after"
    still_works(listener)


# Peers that stop or vanish.


SENDS = """
connection = connect(sys.argv[1], 60.0)
send_all(connection, [b"alive"])
while True:
    connection.send([bytes(300_000)])
"""


def test_a_process_that_is_killed_while_it_sends_ends_its_stream(listener: Listener) -> None:
    with process(SENDS, str(listener.address)) as peer, accept(listener) as accepted:
        assert receive_exactly(accepted, 5) == b"alive"
        receive_exactly(accepted, 2 * UCX_RING_BYTES)
        peer.kill()
        received, error = receive_until_closed(accepted)
        # What it had written before is delivered, as by a kernel.
        assert error.reason == "the peer closed the connection"
        assert not any(received)
        with pytest.raises(ConnectionClosed, match="the peer"):
            send_for_ever(accepted)
        still_works(listener)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_carrier_that_is_killed_in_mid_transfer_ends_its_connection_at_both_ends(
    listener: Listener, victim: int
) -> None:
    before = set(carrier_ids()) if carrier_ids() else set()
    with connect(listener.address, PATIENCE_S) as dialled:
        send_all(dialled, [b"begun"])
        with accept(listener) as accepted:
            assert receive_exactly(accepted, 5) == b"begun"
            payload = bytes(3 * MIB)
            exchange(dialled, accepted, payload, memoryview(bytearray(len(payload))))
            fill(dialled)
            os.kill(sorted(set(carrier_ids()) - before)[victim], signal.SIGKILL)
            for end in (dialled, accepted):
                assert receive_until_closed(end)[1].reason
                with pytest.raises(ConnectionClosed):
                    send_for_ever(end)
    still_works(listener)
    assert settles_at_carriers(len(before))


def test_a_stopped_peer_holds_a_window_and_goes_on_when_it_is_continued(listener: Listener) -> None:
    program = """
connection = connect(sys.argv[1], 60.0)
send_all(connection, [b"alive"])
print(len(receive_until_closed(connection)[0]), flush=True)
"""
    with process(program, str(listener.address)) as peer, accept(listener) as accepted:
        assert receive_exactly(accepted, 5) == b"alive"
        peer.send_signal(signal.SIGSTOP)
        filled = fill(accepted)
        assert len(filled) <= UCX_RING_BYTES
        accepted.close()
        peer.send_signal(signal.SIGCONT)
        assert peer.stdout is not None
        assert int(peer.stdout.readline()) == len(filled)


def test_a_stopped_carrier_keeps_nobody_waiting_inside_a_call(listener: Listener) -> None:
    before = set(carrier_ids())
    with connect(listener.address, PATIENCE_S) as dialled:
        send_all(dialled, [b"begun"])
        with accept(listener) as accepted:
            assert receive_exactly(accepted, 5) == b"begun"
            stopped = set(carrier_ids()) - before
            for number in stopped:
                os.kill(number, signal.SIGSTOP)
            assert len(fill(dialled)) <= UCX_RING_BYTES
            assert accepted.receive_into([memoryview(bytearray(8))]) == 0
            dialled.abort()
            for number in stopped:
                os.kill(number, signal.SIGCONT)
            receive_until_closed(accepted)
    assert settles_at_carriers(len(before))


def test_when_the_process_that_makes_carriers_is_killed_another_one_does(listener: Listener) -> None:
    from broker.transport.ucx.carriers import carriers

    first = carriers.process_id
    assert first is not None
    with connect(listener.address, PATIENCE_S) as dialled:
        send_all(dialled, [b"before"])
        with accept(listener) as accepted:
            assert receive_exactly(accepted, 6) == b"before"
            os.kill(first, signal.SIGKILL)
            while "State:\tZ" not in Path(f"/proc/{first}/status").read_text():
                time.sleep(0.001)
            still_works(listener)
            assert carriers.process_id != first
            send_all(dialled, [b"after"])
            assert receive_exactly(accepted, 5) == b"after"


# Ends.


@pytest.mark.parametrize("end", ["connection.close()", "", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_ends_at_once_and_what_it_sent_before_arrives(listener: Listener, end: str) -> None:
    program = f"connection = connect(sys.argv[1], 60.0)\nassert connection.send([bytes(999_999)]) == 999_999\n{end}"
    with process(program, str(listener.address)) as peer:
        peer.wait(PATIENCE_S)
        with accept(listener) as accepted:
            assert len(receive_until_closed(accepted)[0]) == 999_999


def test_closed_connections_leave_no_process_and_no_memory(listener: Listener) -> None:
    for _ in range(4):
        still_works(listener)
    assert settles_at_carriers(0)
    # Others use UCX at the same time: what a process still has mapped is theirs.
    mine = set(shared_by_ucx())
    deadline_s = time.monotonic() + PATIENCE_S
    while mine and time.monotonic() < deadline_s:
        mine &= set(shared_by_ucx()) - mapped_by_anybody()
    assert not mine


def test_a_forked_child_that_disowns_it_does_not_keep_it_open(listener: Listener) -> None:
    """The child lives on when its parent is killed, and the peer sees the parent's end all the same."""
    program = """
connection = connect(sys.argv[1], 60.0)
send_all(connection, [b"first"])
receive_exactly(connection, 2)
child = os.fork()
if not child:
    connection.disown()
    assert connection.closed
    own = connect(sys.argv[1], 60.0)
    send_all(own, [b"mine" + os.getpid().to_bytes(8, "little")])
signal.pause()
"""
    with process(program, str(listener.address)) as parent, accept(listener) as first:
        assert receive_exactly(first, 5) == b"first"
        send_all(first, [b"go"])
        with accept(listener) as second:
            mine = receive_exactly(second, 12)
            try:
                parent.kill()
                assert receive_until_closed(first)[0] == b""
                assert mine[:4] == b"mine"
            finally:
                os.kill(int.from_bytes(mine[4:], "little"), signal.SIGKILL)
            assert receive_until_closed(second)[0] == b""


LINGERS = """
import socket
from broker.transport.ucx import carrier
from broker.transport.ucx.records import FROM_OWNER
carrier.UCX_LINGER_S = 0.01
link, peer = socket.socketpair()
door, owner = socket.socketpair(type=socket.SOCK_SEQPACKET)
memory = os.memfd_create("rings")
os.ftruncate(memory, 2 * carrier.UCX_RING_BYTES)
owner.send(FROM_OWNER.pack(0, 0, 0))
owner.close()
carrier.Carrier(link, door, memory).run()
print(peer.recv(100).hex())
"""


def test_a_carrier_without_owner_does_not_wait_for_ever_for_a_peer_that_says_nothing() -> None:
    with process(LINGERS) as running:
        assert running.stdout is not None
        assert running.stdout.read().strip() == NOTE.pack(Kind.END, 0).hex()


# The library.


WITHOUT = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "ucxx" else found(name, *more)
import clients, broker.server, broker.cli.serve
try:
    connect("ucx://127.0.0.1:1", 1.0)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_without_ucxx_everything_is_imported_and_an_address_says_what_to_install() -> None:
    with process(WITHOUT) as running:
        assert running.stdout is not None
        said = running.stdout.read()
    assert said.startswith(InvalidValue.__name__)
    assert "pip install 'tensorbus[ucx]'" in said


def test_neither_a_broker_nor_a_client_loads_ucxx(listener: Listener) -> None:
    still_works(listener)
    assert "ucxx" not in sys.modules
    assert "libucp" not in Path("/proc/self/maps").read_text()


def test_notes_are_split_wherever_they_were_cut() -> None:
    whole = MAGIC + hello(7, b"where") + NOTE.pack(Kind.GRANT, 5) + NOTE.pack(Kind.END, 6) + NOTE.pack(Kind.DONE, 6)
    expected = [(Kind.HELLO, 7, b"where"), (Kind.GRANT, 5, b""), (Kind.END, 6, b""), (Kind.DONE, 6, b"")]
    for size in (1, 3, len(whole)):
        notes = Notes()
        found = [note for at in range(0, len(whole), size) for note in notes.split(whole[at : at + size])]
        assert found == expected
    with pytest.raises(Malformed):
        Notes().split(b"TBUSX")
