"""What broker/transport/base.py promises, asked of every transport."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest

from broker.errors import BrokerError, ConnectError, ConnectionClosed, ListenError
from broker.limits import IOV_BUFFERS_MAX, MIB
from broker.transport import Connection, Listener, listen, parse
from tests.thorough import rounds

from .conftest import TransportPair
from .driving import (
    PATIENCE_S,
    accept,
    connect,
    exchange,
    fill,
    is_ready,
    receive_exactly,
    receive_until_closed,
    send_all,
    send_for_ever,
    wait_readable,
    writable,
)


def test_bytes_go_both_ways(transport_pair: TransportPair) -> None:
    send_all(transport_pair.dialled, [b"question"])
    assert receive_exactly(transport_pair.accepted, 8) == b"question"
    send_all(transport_pair.accepted, [b"answer"])
    assert receive_exactly(transport_pair.dialled, 6) == b"answer"


def test_bytes_arrive_in_order_across_partial_sends(transport_pair: TransportPair) -> None:
    payload = os.urandom(5 * MIB + 1)
    received = bytearray(len(payload))
    exchange(transport_pair.dialled, transport_pair.accepted, payload, memoryview(received))
    assert received == payload


def test_64_mib_arrive_intact(transport_pair: TransportPair) -> None:
    payload = np.arange(16 * MIB, dtype=np.uint32)
    received = np.zeros_like(payload)
    exchange(
        transport_pair.accepted,
        transport_pair.dialled,
        memoryview(payload).cast("B"),
        memoryview(received).cast("B"),
    )
    assert np.array_equal(received, payload)


def test_a_gathered_send_joins_many_small_and_empty_buffers(transport_pair: TransportPair) -> None:
    buffers = [b"", *(bytes([number % 251]) * (number % 5) for number in range(900)), b""]
    whole = b"".join(buffers)
    assert transport_pair.dialled.send(buffers) == len(whole)
    assert receive_exactly(transport_pair.accepted, len(whole)) == whole


def test_a_gathered_send_takes_the_first_buffers_when_there_are_more_than_the_kernel_takes(
    transport_pair: TransportPair,
) -> None:
    assert transport_pair.dialled.send([b"x"] * (IOV_BUFFERS_MAX + 1)) == IOV_BUFFERS_MAX
    assert receive_exactly(transport_pair.accepted, IOV_BUFFERS_MAX) == b"x" * IOV_BUFFERS_MAX
    assert transport_pair.accepted.receive_into([memoryview(bytearray(1))]) == 0


@pytest.mark.parametrize("buffers", [[], [b""], [b"", b""]], ids=["no buffer", "one empty", "two empty"])
def test_sending_nothing_sends_nothing(transport_pair: TransportPair, buffers: list[bytes]) -> None:
    assert transport_pair.dialled.send(buffers) == 0
    assert not is_ready(transport_pair.accepted.fileno(), select.POLLIN)


def test_a_scattered_receive_fills_buffers_in_turn(transport_pair: TransportPair) -> None:
    send_all(transport_pair.dialled, [b"headerpayload!"])
    buffers = [bytearray(6), bytearray(0), bytearray(7), bytearray(4)]
    wait_readable(transport_pair.accepted)
    assert transport_pair.accepted.receive_into([memoryview(buffer) for buffer in buffers]) == 14
    assert buffers == [b"header", b"", b"payload", b"!\0\0\0"]


def test_a_scattered_receive_fills_the_first_buffers_when_there_are_more_than_the_kernel_takes(
    transport_pair: TransportPair,
) -> None:
    send_all(transport_pair.dialled, [b"x" * (IOV_BUFFERS_MAX + 1)])
    buffers = [memoryview(bytearray(1)) for _ in range(IOV_BUFFERS_MAX + 1)]
    wait_readable(transport_pair.accepted)
    assert transport_pair.accepted.receive_into(buffers) == IOV_BUFFERS_MAX
    assert receive_exactly(transport_pair.accepted, 1) == b"x"


@pytest.mark.parametrize("count", [1, 2])
def test_receive_returns_0_when_nothing_is_there(transport_pair: TransportPair, count: int) -> None:
    assert transport_pair.dialled.receive_into([memoryview(bytearray(8))] * count) == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_receive_without_room_takes_nothing(transport_pair: TransportPair, count: int) -> None:
    send_all(transport_pair.dialled, [b"x"])
    wait_readable(transport_pair.accepted)
    assert transport_pair.accepted.receive_into([memoryview(bytearray(0))] * count) == 0
    assert receive_exactly(transport_pair.accepted, 1) == b"x"


@pytest.mark.parametrize(
    "buffer",
    [b"12345678", bytearray(b"12345678"), memoryview(b"0123456789")[1:9], memoryview(b"12345678").cast("d")],
    ids=["bytes", "bytearray", "slice", "doubles"],
)
def test_any_contiguous_buffer_stands_for_its_bytes(
    transport_pair: TransportPair, buffer: bytes | bytearray | memoryview
) -> None:
    for buffers, whole in (([buffer], b"12345678"), ([buffer, b"9"], b"123456789")):
        assert transport_pair.dialled.send(buffers) == len(whole)
        assert receive_exactly(transport_pair.accepted, len(whole)) == whole


def test_an_array_of_another_format_is_sent_and_received_as_its_bytes(transport_pair: TransportPair) -> None:
    array = np.linspace(0.0, 1.0, 12, dtype=np.float32).reshape(3, 4)
    received = np.zeros_like(array)
    assert transport_pair.dialled.send([memoryview(array)]) == array.nbytes
    wait_readable(transport_pair.accepted)
    assert transport_pair.accepted.receive_into([memoryview(received)]) == array.nbytes
    assert np.array_equal(received, array)


@pytest.mark.parametrize("count", [1, 2])
def test_a_buffer_with_gaps_is_refused_and_nothing_is_moved(transport_pair: TransportPair, count: int) -> None:
    with pytest.raises(BufferError):
        transport_pair.dialled.send([memoryview(bytes(8))[::2]] * count)
    send_all(transport_pair.dialled, [b"whole"])
    wait_readable(transport_pair.accepted)
    with pytest.raises((BufferError, TypeError)):
        transport_pair.accepted.receive_into([memoryview(bytearray(8))[::2]] * count)
    assert receive_exactly(transport_pair.accepted, 5) == b"whole"


def test_a_buffer_belongs_to_the_caller_again_after_send(transport_pair: TransportPair) -> None:
    buffer = bytearray(b"before")
    assert transport_pair.dialled.send([buffer]) == 6
    buffer[:] = b"after!"
    assert receive_exactly(transport_pair.accepted, 6) == b"before"


def test_a_connection_is_readable_when_bytes_are_there(transport_pair: TransportPair) -> None:
    fileno = transport_pair.accepted.fileno()
    assert not is_ready(fileno, select.POLLIN)
    send_all(transport_pair.dialled, [b"ab"])
    assert is_ready(fileno, select.POLLIN, PATIENCE_S)
    receive_exactly(transport_pair.accepted, 1)
    assert is_ready(fileno, select.POLLIN)
    receive_exactly(transport_pair.accepted, 1)
    assert not is_ready(fileno, select.POLLIN)


def test_send_stops_at_a_peer_that_does_not_read_and_goes_on_when_it_does(transport_pair: TransportPair) -> None:
    dialled = transport_pair.dialled
    accepted = bytearray(fill(dialled))
    # A kernel finds a little room once more when it asks the peer's, now and then, whether there is some.
    for words in ([b"more"], [b"more", b"and more"]):
        while sent_bytes := dialled.send(words):
            accepted += b"".join(words)[:sent_bytes]
            assert len(accepted) < 64 * MIB
    while is_ready(dialled.fileno(), writable(dialled)):
        accepted += fill(dialled)
        assert len(accepted) < 64 * MIB
    assert receive_exactly(transport_pair.accepted, len(accepted)) == accepted
    send_all(transport_pair.dialled, [b"later"])
    assert receive_exactly(transport_pair.accepted, 5) == b"later"


def test_one_direction_goes_on_while_the_other_is_full(transport_pair: TransportPair) -> None:
    fill(transport_pair.dialled)
    send_all(transport_pair.accepted, [b"stop"])
    assert receive_exactly(transport_pair.dialled, 4) == b"stop"


def test_an_asyncio_loop_can_wait_for_it(transport_pair: TransportPair) -> None:
    async def first_byte() -> bytes:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(transport_pair.accepted.fileno(), readable.set)
        loop.call_soon(transport_pair.dialled.send, [b"!"])
        await asyncio.wait_for(readable.wait(), PATIENCE_S)
        loop.remove_reader(transport_pair.accepted.fileno())
        return receive_exactly(transport_pair.accepted, 1)

    assert asyncio.run(first_byte()) == b"!"


def test_one_thread_may_send_while_another_receives(transport_pair: TransportPair) -> None:
    payload = os.urandom(8 * MIB)
    threads = [
        threading.Thread(target=send_all, args=(end, [payload]))
        for end in (transport_pair.dialled, transport_pair.accepted)
    ]
    for thread in threads:
        thread.start()
    there, back = bytearray(len(payload)), bytearray(len(payload))
    rooms = {transport_pair.accepted: memoryview(there), transport_pair.dialled: memoryview(back)}
    while any(rooms.values()):
        for end, room in rooms.items():
            if room:
                rooms[end] = room[end.receive_into([room]) :]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert there == payload
    assert back == payload


def test_the_peers_close_shows_only_after_all_bytes_were_read(transport_pair: TransportPair) -> None:
    accepted = fill(transport_pair.dialled)
    transport_pair.dialled.close()
    received, error = receive_until_closed(transport_pair.accepted)
    assert received == accepted
    assert error.reason == "the peer closed the connection"
    assert not transport_pair.accepted.closed


@pytest.mark.parametrize("count", [1, 2])
def test_the_peers_close_shows_again_on_each_receive(transport_pair: TransportPair, count: int) -> None:
    transport_pair.dialled.close()
    wait_readable(transport_pair.accepted)
    for _ in range(2):
        with pytest.raises(ConnectionClosed, match="the peer closed"):
            transport_pair.accepted.receive_into([memoryview(bytearray(8))] * count)


def test_close_delivers_what_was_accepted_although_unread_bytes_had_arrived(transport_pair: TransportPair) -> None:
    accepted = fill(transport_pair.dialled)
    send_all(transport_pair.accepted, [b"nobody reads this"])
    wait_readable(transport_pair.dialled)
    transport_pair.dialled.close()
    received, error = receive_until_closed(transport_pair.accepted)
    assert received == accepted
    assert error.reason == "the peer closed the connection"


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """By them alone ZeroMQ notices that a peer is gone which it goes on sending to."""
    monkeypatch.setattr("broker.transport.zeromq.sockets.HEARTBEAT_INTERVAL_S", 0.5)
    monkeypatch.setattr("broker.transport.zeromq.sockets.HEARTBEAT_TIMEOUT_S", 3.0)


@pytest.mark.parametrize("end", [methodcaller("close"), methodcaller("abort")], ids=["close", "abort"])
@pytest.mark.usefixtures("quick_heartbeats")
def test_sending_to_a_peer_that_is_gone_raises_and_sends_no_signal(
    transport_pair: TransportPair, end: Callable[[Connection], None]
) -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: signals.append(number))
    try:
        end(transport_pair.accepted)
        with pytest.raises(ConnectionClosed):
            send_for_ever(transport_pair.dialled)
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert signals == []


def test_abort_ends_the_peers_stream(transport_pair: TransportPair) -> None:
    transport_pair.dialled.abort()
    received, error = receive_until_closed(transport_pair.accepted)
    assert received == b""
    assert "the peer" in error.reason


@pytest.mark.parametrize("end", [methodcaller("close"), methodcaller("abort")], ids=["close", "abort"])
def test_after_the_end_every_use_raises_and_a_second_end_does_nothing(
    transport_pair: TransportPair, end: Callable[[Connection], None]
) -> None:
    connection = transport_pair.dialled
    addresses = (connection.local_address, connection.peer_address)
    end(connection)
    end(connection)
    connection.close()
    connection.abort()
    assert connection.closed
    assert connection.fileno() == -1
    assert (connection.local_address, connection.peer_address) == addresses
    for count in (1, 2):
        with pytest.raises(ConnectionClosed, match="closed on this side"):
            connection.send([b"x"] * count)
        with pytest.raises(ConnectionClosed, match="closed on this side"):
            connection.receive_into([memoryview(bytearray(1))] * count)


def test_a_connection_closes_at_the_end_of_its_with_block(listener: Listener) -> None:
    with connect(listener.address, PATIENCE_S) as connection:
        assert not connection.closed
    assert connection.closed


def test_the_ends_know_their_addresses(transport_pair: TransportPair) -> None:
    address = str(transport_pair.listener.address)
    assert transport_pair.dialled.peer_address == address
    assert transport_pair.accepted.local_address == address
    assert transport_pair.dialled.local_address == transport_pair.accepted.peer_address


def test_repr_tells_state_and_addresses_in_one_line(transport_pair: TransportPair) -> None:
    for end in (transport_pair.dialled, transport_pair.listener):
        assert repr(end).count("\n") == 0
        assert "OPEN" in repr(end)
        assert str(transport_pair.listener.address) in repr(end)
        end.close()
        assert "CLOSED" in repr(end)


def test_accept_returns_none_when_nobody_waits(listener: Listener) -> None:
    assert listener.accept() is None
    assert not is_ready(listener.fileno(), select.POLLIN)


def test_a_listener_is_readable_while_somebody_waits(listener: Listener) -> None:
    dialled = [connect(listener.address, PATIENCE_S) for _ in range(3)]
    accepted = [accept(listener) for _ in range(3)]
    assert listener.accept() is None
    assert not is_ready(listener.fileno(), select.POLLIN)
    assert {end.peer_address for end in accepted} == {end.local_address for end in dialled}
    for end in (*dialled, *accepted):
        end.close()


def test_a_connection_may_be_used_before_it_is_accepted(listener: Listener) -> None:
    with connect(listener.address, PATIENCE_S) as dialled:
        send_all(dialled, [b"early"])
        with accept(listener) as accepted:
            assert receive_exactly(accepted, 5) == b"early"


def test_a_dialler_that_gave_up_does_not_harm_the_listener(listener: Listener) -> None:
    connect(listener.address, PATIENCE_S).abort()
    with connect(listener.address, PATIENCE_S) as dialled:
        ends = [accept(listener)]
        if ends[0].peer_address != dialled.local_address:
            # The one that gave up is told of as well, and the other one follows.
            ends.append(accept(listener))
        assert ends[-1].peer_address == dialled.local_address
        for end in ends:
            end.close()


def test_a_refused_connection_names_the_address_and_what_to_do(listener: Listener) -> None:
    address = listener.address
    listener.close()
    with pytest.raises(ConnectError) as caught:
        connect(address, PATIENCE_S)
    assert caught.value.address == str(address)
    assert str(address) in str(caught.value)
    assert "broker" in caught.value.reason


def test_an_address_in_use_is_named_and_stays_with_its_listener(listener: Listener) -> None:
    with pytest.raises(ListenError, match="in use") as caught:
        listen(listener.address)
    assert caught.value.address == str(listener.address)
    with connect(listener.address, PATIENCE_S) as dialled, accept(listener) as accepted:
        assert accepted.peer_address == dialled.local_address


def test_an_address_is_free_again_after_close(listener: Listener) -> None:
    with connect(listener.address, PATIENCE_S), accept(listener) as accepted:
        listener.close()
        if listener.address.scheme == "zmq+tcp":
            # ZeroMQ ends a listener's connections with it, so the port is free when they are closed.
            with pytest.raises(ListenError, match="in use"):
                listen(listener.address)
            accepted.close()
        with listen(listener.address) as second, connect(second.address, PATIENCE_S), accept(second) as accepted:
            assert accepted.local_address == str(listener.address)


def test_the_printed_address_can_be_dialled(listener: Listener) -> None:
    assert parse(str(listener.address)) == listener.address
    with connect(str(listener.address), PATIENCE_S) as dialled:
        assert dialled.peer_address == str(listener.address)


def test_a_closed_listener_raises_and_closes_again_quietly(listener: Listener) -> None:
    listener.close()
    listener.close()
    assert listener.fileno() == -1
    with pytest.raises(ConnectionClosed, match="closed on this side"):
        listener.accept()


def test_connections_outlive_their_listener(transport_pair: TransportPair) -> None:
    transport_pair.listener.close()
    send_all(transport_pair.dialled, [b"still here"])
    assert receive_exactly(transport_pair.accepted, 10) == b"still here"


def test_closing_the_listener_cuts_off_those_who_wait(listener: Listener) -> None:
    with connect(listener.address, PATIENCE_S) as dialled:
        listener.close()
        assert "the peer" in receive_until_closed(dialled)[1].reason


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def settles_at(count: int) -> bool:
    """Whether no more files are open, at once or when a library's thread has closed what it was told to.

    One look decides: when a listener was asked whether it is there, that thread may accept only after it.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while open_files() > count:
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.001)
    return True


def test_hundreds_of_connections_leak_no_descriptor(listener: Listener) -> None:
    before = open_files()
    for number in range(rounds(1000)):
        dialled, accepted = connect(listener.address, PATIENCE_S), accept(listener)
        first, second = (dialled, accepted) if number % 2 else (accepted, dialled)
        (first.abort if number % 3 else first.close)()
        second.close()
    assert settles_at(before)


def test_failed_attempts_leak_no_descriptor(listener: Listener) -> None:
    before = open_files()
    with pytest.raises(BrokerError):
        listen(listener.address)
    assert settles_at(before)
    address = listener.address
    listener.close()
    after = open_files()
    for _ in range(3):
        with pytest.raises(BrokerError):
            connect(address, PATIENCE_S)
    assert settles_at(after)
    assert after < before
