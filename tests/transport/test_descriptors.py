"""Descriptors that pass beside the bytes of a Unix-domain connection."""

from __future__ import annotations

import array
import gc
import os
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from broker.errors import ConnectionClosed, InvalidValue, LimitExceeded
from broker.limits import DESCRIPTORS_WAITING_MAX
from broker.transport.descriptors import LocalConnection, identity_of
from broker.transport.hangups import Hangups
from broker.transport.shared_memory import SharedMemory

SIZE = 8192


def files() -> set[tuple[str, str]]:
    """The descriptors of this process, and what each is. Other tests' threads may still be closing theirs."""
    gc.collect()
    folder = Path("/proc/self/fd")
    found = set()
    for name in os.listdir(folder):
        with suppress(OSError):
            found.add((name, os.readlink(folder / name)))
    return found


@pytest.fixture
def ends() -> Iterator[tuple[LocalConnection, LocalConnection]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with LocalConnection(near, "near", "far") as first, LocalConnection(far, "far", "near") as second:
        first.passage.enabled = second.passage.enabled = True
        yield first, second


def read(connection: LocalConnection, size: int = 100_000) -> bytes:
    buffer = memoryview(bytearray(size))
    return bytes(buffer[: connection.receive_into([buffer])])


def test_memory_passes_with_the_next_write(ends: tuple[LocalConnection, LocalConnection]) -> None:
    sender, receiver = ends
    memory = SharedMemory.create(SIZE)
    memory.view(0, 2, memory)[:] = b"ok"
    sender.passage.give(memory)
    assert sender.send([b"a", b"b"]) == 2
    assert read(receiver) == b"ab"
    other = receiver.passage.adopt(memory.identity, SIZE)
    assert bytes(other.view(0, 2, other)) == b"ok"
    assert not sender.passage.has_leaving


def test_memory_that_its_owner_has_forgotten_still_leaves(ends: tuple[LocalConnection, LocalConnection]) -> None:
    sender, receiver = ends
    memory = SharedMemory.create(SIZE)
    identity = memory.identity
    sender.passage.give(memory)
    del memory
    assert sender.send([b"x"]) == 1
    assert read(receiver) == b"x"
    assert receiver.passage.adopt(identity, SIZE).identity == identity


def test_many_pass_in_several_writes_and_are_found_in_any_order(ends: tuple[LocalConnection, LocalConnection]) -> None:
    sender, receiver = ends
    memories = [SharedMemory.create(SIZE) for _ in range(40)]
    for memory in memories:
        sender.passage.give(memory)
    while sender.passage.has_leaving:
        assert sender.send([b"."]) == 1
    while read(receiver, 1):
        pass
    for memory in reversed(memories):
        assert receiver.passage.adopt(memory.identity, SIZE).identity == memory.identity


def test_no_byte_but_a_first_one_overtakes_a_descriptor(ends: tuple[LocalConnection, LocalConnection]) -> None:
    sender, receiver = ends
    memories = [SharedMemory.create(SIZE) for _ in range(40)]
    for memory in memories:
        sender.passage.give(memory)
    frames, sent = memoryview(b"what the frames say"), 0
    while sent < len(frames):
        assert sent < 3 or not sender.passage.has_leaving
        sent += sender.send([b"", frames[sent : sent + 5], frames[sent + 5 :]])
    received = b""
    while len(received) < len(frames):
        received += read(receiver)
    assert received == frames
    for memory in memories:
        assert receiver.passage.adopt(memory.identity, SIZE).identity == memory.identity


def test_memory_whose_descriptor_was_closed_meanwhile_stays_here(
    ends: tuple[LocalConnection, LocalConnection],
) -> None:
    sender, receiver = ends
    closed, memory = SharedMemory.create(SIZE), SharedMemory.create(SIZE)
    for each in (closed, memory, closed):
        sender.passage.give(each)
    closed.close_descriptor()
    assert sender.send([b"x"]) == 1
    sender.passage.give(closed)
    assert sender.send([b"y"]) == 1
    assert read(receiver, 1) + read(receiver, 1) == b"xy"
    assert receiver.passage.adopt(memory.identity, SIZE).identity == memory.identity


def test_a_write_that_is_not_taken_takes_nothing_along(ends: tuple[LocalConnection, LocalConnection]) -> None:
    sender, receiver = ends
    while sender.send([bytes(100_000)]):
        pass
    memory = SharedMemory.create(SIZE)
    sender.passage.give(memory)
    assert sender.send([bytes(100_000)]) == 0
    assert sender.passage.has_leaving
    while read(receiver):
        pass
    assert sender.send([b"x"]) == 1
    assert read(receiver) == b"x"
    assert receiver.passage.adopt(memory.identity, SIZE).identity == memory.identity


def test_what_has_not_come_cannot_be_adopted(ends: tuple[LocalConnection, LocalConnection]) -> None:
    with pytest.raises(LimitExceeded, match="cannot be mapped"):
        ends[0].passage.adopt(12345, SIZE)


def test_unasked_descriptors_are_bounded_and_closed(ends: tuple[LocalConnection, LocalConnection]) -> None:
    sender, receiver = ends
    before = files()
    memories = [SharedMemory.create(SIZE) for _ in range(DESCRIPTORS_WAITING_MAX + 20)]
    for memory in memories:
        sender.passage.give(memory)
    while sender.passage.has_leaving:
        sender.send([b"."])
        read(receiver, 1)
    assert len(files() - before) == len(memories) + DESCRIPTORS_WAITING_MAX
    # The same file again adds nothing.
    sender.passage.give(memories[0])
    sender.send([b"."])
    read(receiver, 1)
    assert len(files() - before) == len(memories) + DESCRIPTORS_WAITING_MAX
    end = (str(receiver.fileno()), os.readlink(f"/proc/self/fd/{receiver.fileno()}"))
    receiver.close()
    del memories, memory
    assert not files() - before
    assert end in before - files()


def test_ends_that_have_not_agreed_take_no_descriptors() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, LocalConnection(far, "far", "near") as receiver:
        before = files()
        rights = array.array("i", [0, 1, 2])
        near.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        assert read(receiver) == b"x"
        assert not files() - before


def test_what_is_no_shared_memory_is_refused(ends: tuple[LocalConnection, LocalConnection]) -> None:
    receiver = ends[1]
    with open("/dev/null") as null:
        receiver.passage.arrived([os.dup(null.fileno())])
        with pytest.raises(InvalidValue, match="length"):
            receiver.passage.adopt(os.fstat(null.fileno()).st_ino, SIZE)


def test_descriptors_of_one_device_are_kept_in_the_order_of_their_arrival(
    ends: tuple[LocalConnection, LocalConnection],
) -> None:
    passage = ends[1].passage
    with open("/dev/null") as null, open("/dev/zero") as zero:
        many = [os.dup(null.fileno()) for _ in range(3)]
        identities = [os.fstat(file.fileno()).st_ino for file in (null, zero)]
        passage.arrived([many[0], os.dup(zero.fileno()), *many[1:]])
    taken = [passage.take_device(identities[0]) for _ in range(2)]
    assert [handle.descriptor for handle in taken if handle is not None] == many[:2]
    assert passage.take_device(identities[1]) is not None
    assert passage.take_device(identities[1]) is None
    passage.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(many[2])


def test_of_those_that_nobody_takes_no_more_are_kept_than_of_others(
    ends: tuple[LocalConnection, LocalConnection],
) -> None:
    passage = ends[1].passage
    with open("/dev/null") as null:
        many = [os.dup(null.fileno()) for _ in range(DESCRIPTORS_WAITING_MAX + 1)]
        passage.arrived(many)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(many[-1])
        identity = os.fstat(null.fileno()).st_ino
        kept = [handle for _ in many if (handle := passage.take_device(identity)) is not None]
        assert len(kept) == DESCRIPTORS_WAITING_MAX


def test_without_a_free_descriptor_the_bytes_still_come(ends: tuple[LocalConnection, LocalConnection]) -> None:
    sender, receiver = ends
    memory = SharedMemory.create(SIZE)
    sender.passage.give(memory)
    sender.send([b"first"])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))
    try:
        received = read(receiver)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert received == b"first"
    with pytest.raises(LimitExceeded, match="cannot be mapped"):
        receiver.passage.adopt(memory.identity, SIZE)
    sender.passage.give(memory)
    sender.send([b"again"])
    assert read(receiver) == b"again"
    assert receiver.passage.adopt(memory.identity, SIZE).identity == memory.identity


def test_the_end_of_a_connection_is_told_as_by_any_other(ends: tuple[LocalConnection, LocalConnection]) -> None:
    sender, receiver = ends
    sender.passage.give(SharedMemory.create(SIZE))
    receiver.close()
    with pytest.raises(ConnectionClosed):
        sender.send([b"x"])
    with pytest.raises(ConnectionClosed):
        read(sender)


def test_an_end_that_has_ended_sending_is_told_when_the_other_one_closes() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with LocalConnection(near, "near", "far") as sender, LocalConnection(far, "far", "near") as receiver:
        hangups: Hangups[str] = Hangups()
        hangups.add(sender.fileno(), "sender")
        sender.send([b"last"])
        sender.end_sending()
        assert read(receiver) == b"last"
        with pytest.raises(ConnectionClosed):
            read(receiver)
        receiver.send([b"x"])
        assert hangups.find() == []
        receiver.close()
        assert hangups.find() == ["sender"]
        sender.end_sending()


def test_what_the_system_tells_of_files_that_are_no_eventfds_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    asked: list[str] = []

    def noting(path: Path, *args: str, **named: str) -> str:
        asked.append(str(path))
        return read(path, *args, **named)

    monkeypatch.setattr(Path, "read_text", noting)
    bell = os.eventfd(0)
    with select.epoll() as poll:
        poll.register(bell)
        assert identity_of(poll.fileno()) == 0
        assert not asked
        assert identity_of(bell) > 1 << 62
        assert len(asked) == 1
    os.close(bell)


def test_as_a_bell_only_an_eventfd_is_taken_and_others_are_closed(
    ends: tuple[LocalConnection, LocalConnection],
) -> None:
    receiver, before = ends[1], files()
    pipe, bell = os.pipe(), os.eventfd(0)
    poll = select.epoll()
    memory = SharedMemory.create(SIZE)
    given = [*pipe, os.dup(memory.descriptor), bell]
    identities = [identity_of(each) for each in given]
    receiver.passage.arrived([*given, os.dup(poll.fileno())])
    assert [receiver.passage.take(each) is not None for each in identities] == [False, False, False, True]
    assert receiver.passage.take(0) is None
    poll.close()
    del memory
    assert not files() - before
