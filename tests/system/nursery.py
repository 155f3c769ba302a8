"""Forks clients, one after the other, and kills each of them with SIGKILL while it is busy with a large message.

A fork costs a few milliseconds, where a new Python with numpy costs half a second, so hundreds of kills fit a test. A
child tells through a pipe of each piece of a large message that it has sent or received, so that it dies in the middle
of one whatever else the machine does.

Where memory is shared, what moves is short: the child tells of each array that it publishes or takes, and is killed a
random moment later, wherever that finds it.

    python -m tests.system.nursery URL publish|read|share|hold|share-lined|hold-lined KILLS SEED

Of the last two a child tells only of what goes over a line.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

import clients
from broker.buffers import Buffer
from broker.transport.base import Connection
from broker.transport.tcp import TcpConnection

TOPIC = "parts"
HELD_MAX = 6
"""Arrays that a reader keeps and looks at again."""
LARGE_NUMBERS = 1 << 19
"""Elements of a large message: 4 MiB of int64, in 16 chunks."""
PIECE_BYTES = 128 << 10
"""What moves at once of a large message, at least; a small message or a batch is shorter."""
PIECES_MAX = 12
"""A large message has at least 16 pieces, so a client dies in the middle of one."""
PIECES_BEFORE = 24
"""Some clients have sent or received a whole one before."""
BEFORE_SHARE = 0.1
SMALL_MESSAGES = 20
PIECE = b"."
MOMENT_MAX = 50_000
"""Rounds of a loop, one or two milliseconds: what an array takes from one process to the other."""


def large(number: int) -> np.ndarray:
    """The large message of a number; what it has to be can be told from its first element."""
    return np.arange(number, number + LARGE_NUMBERS)


def kind_of(url: str) -> type[Connection]:
    """The class whose `send` and `receive_into` move the bytes of connections to an address."""
    if url.startswith("ucx:"):
        from broker.transport.ucx.connection import UcxConnection

        return UcxConnection
    if not url.startswith("zmq+"):
        return TcpConnection
    from broker.transport.zeromq.stream import Stream

    return Stream


def tell_of_pieces(pipe: int, kind: type[Connection]) -> None:
    """Has every connection of a kind write a PIECE to the pipe when a piece of a large message has moved."""
    send, receive_into = kind.send, kind.receive_into

    def told(moved_bytes: int) -> int:
        if moved_bytes >= PIECE_BYTES:
            os.write(pipe, PIECE)
        return moved_bytes

    def send_and_tell(self: Connection, buffers: Sequence[Buffer]) -> int:
        return told(send(self, buffers))

    def receive_and_tell(self: Connection, buffers: Sequence[memoryview]) -> int:
        return told(receive_into(self, buffers))

    kind.send = send_and_tell  # type: ignore[method-assign]
    kind.receive_into = receive_and_tell  # type: ignore[method-assign]
    # A wire of its own would go past them.
    kind.wire = Connection.wire  # type: ignore[method-assign]


def publish(url: str, name: str) -> None:
    """Publishes small messages, many of them in batches, and large ones between them, numbered from 0."""
    bus = clients.connect(url, name=name)
    number = 0
    while True:
        for _ in range(SMALL_MESSAGES):
            bus.publish(TOPIC, number)
            number += 1
        bus.publish(TOPIC, large(number))
        number += 1


def read(url: str, name: str) -> None:
    """Reads what others publish."""
    bus = clients.connect(url, name=name)
    for _ in bus.subscribe(TOPIC, queue_messages=8):
        pass


def shared_array(number: int) -> np.ndarray:
    """An array of a length that depends on its number, 64 KiB to 4 MiB, and filled with it."""
    return np.full(8192 << number % 7, number)


def is_torn(array: np.ndarray) -> bool:
    """Whether an array is not one that was published, as a whole."""
    return len(array) != 8192 << int(array[0]) % 7 or bool((array != array[0]).any())


def share(url: str, name: str, told: Callable[[], None], *, lined: bool = False) -> None:
    """Publishes arrays in shared memory, every other one without a copy.

    Args:
        url: of the broker.
        name: of the client.
        told: called before each array.
        lined: only where it is about to go over a line.
    """
    bus = clients.connect(url, name=name)
    number = 0
    while True:
        array = shared_array(number)
        if number % 2:
            lent = bus.empty(array.shape, array.dtype)
            lent[:] = array
            array = lent
        topic = bus._core.outgoing.topics.get(TOPIC)
        if not lined or (topic is not None and topic.line is not None):
            told()
        bus.publish(TOPIC, array)
        number += 1


def hold(url: str, name: str, told: Callable[[], None], *, queue_messages: int = 8, lined: bool = False) -> None:
    """Reads arrays in shared memory, and each again after some others.

    Args:
        url: of the broker.
        name: of the client.
        told: called for each array.
        queue_messages: of the subscription.
        lined: only while it reads a line.
    """
    bus = clients.connect(url, name=name)
    held: deque[np.ndarray] = deque()
    for message in bus.subscribe(TOPIC, queue_messages=queue_messages):
        if not lined or bus._core.lines.count:
            told()
        held.append(message.value)
        if is_torn(held[-1]) or is_torn(held[0]):
            raise AssertionError(f"{message!r} or one before it is torn")
        if len(held) > HELD_MAX:
            held.popleft()


SHARING: dict[str, Callable[[str, str, Callable[[], None]], None]] = {
    "share": share, "hold": hold,
    "share-lined": partial(share, lined=True), "hold-lined": partial(hold, queue_messages=64, lined=True),
}  # fmt: skip
ROLES: dict[str, Callable[[str, str], None]] = {"publish": publish, "read": read}


def told(pipe: int) -> None:
    """Writes a PIECE to the pipe."""
    os.write(pipe, PIECE)


def give_birth(role: str, url: str, name: str) -> tuple[int, int]:
    """Forks a client; returns its process id and the end of the pipe to read from."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            if role in SHARING:
                SHARING[role](url, name, lambda: told(writing))
            tell_of_pieces(writing, kind_of(url))
            ROLES[role](url, name)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(writing)
    return child, reading


def wait_for_pieces(pipe: int, pieces: int) -> None:
    """Returns when so many pieces have moved."""
    while pieces > 0:
        told = os.read(pipe, pieces)
        if not told:
            raise EOFError("the child ended by itself")
        pieces -= len(told)


def main(url: str, role: str, kills: str, seed: str) -> None:
    generator = random.Random(int(seed))
    for number in range(int(kills)):
        child, pipe = give_birth(role, url, f"{role}-{seed}-{number}")
        before = PIECES_BEFORE if generator.random() < BEFORE_SHARE else 0
        wait_for_pieces(pipe, before + generator.randint(1, PIECES_MAX))
        if role in SHARING:
            for _ in range(generator.randrange(MOMENT_MAX)):
                pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(pipe)
    print("killed", kills, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
