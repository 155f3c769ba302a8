"""The other end of links, spoken by hand: what an engine is told, and by whom, is the test's choice."""

from __future__ import annotations

import socket
import struct
import threading
from typing import NamedTuple

from broker.collectives import ring

HEAD = struct.Struct("<IHHIIQQQ")
MAGIC = 0x01524254
MEET, PIECE, READY, HURRY, ABORT = 1, 2, 3, 4, 5
PATIENCE_S = 60.0


class Word(NamedTuple):
    """What has come over a link."""

    kind: int
    code: int
    step: int
    sequence: int
    first: int
    second: int
    body: bytes


class Stranger:
    """Plays all positions but 0, each over one socket."""

    def __init__(self, positions: int = 2, hosts: str = "") -> None:
        pairs = [socket.socketpair() for _ in range(1, positions)]
        self.sockets = {position: pair[1] for position, pair in enumerate(pairs, 1)}
        for each in self.sockets.values():
            each.settimeout(PATIENCE_S)
        self.engine = ring.Engine([[], *([pair[0].detach()] for pair in pairs)], 0, hosts=hosts)

    def send(self, position: int, data: bytes) -> None:
        """Sends whatever it is."""
        self.sockets[position].sendall(data)

    def say(
        self, position: int, kind: int, *, code: int = 0, step: int = 0, sequence: int = 1, first: int = 0,
        second: int = 0, body: bytes = b"", size: int | None = None,
    ) -> None:  # fmt: skip
        """Sends a word."""
        length = len(body) if size is None else size
        self.send(position, HEAD.pack(MAGIC, kind, code, length, step, sequence, first, second) + body)

    def meet(self, position: int, claim: bytes, array: bytes = b"", sequence: int = 1) -> None:
        """Begins an operation."""
        self.say(position, MEET, sequence=sequence, first=len(claim), body=claim + array)

    def hear(self, position: int = 1) -> Word:
        """The next word that comes."""
        magic, kind, code, size, step, sequence, first, second = HEAD.unpack(self._receive(position, HEAD.size))
        assert magic == MAGIC
        return Word(kind, code, step, sequence, first, second, self._receive(position, size))

    def hear_until(self, kind: int, position: int = 1) -> Word:
        """The next word of a kind."""
        word = self.hear(position)
        while word.kind != kind:
            word = self.hear(position)
        return word

    def hang_up(self, position: int = 1) -> None:
        """Closes a link."""
        self.sockets[position].close()

    def close(self) -> None:
        """Ends the engine and all links."""
        self.engine.close()
        for each in self.sockets.values():
            each.close()

    def _receive(self, position: int, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.sockets[position].recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


class Cut:
    """A link that breaks after so many bytes in both directions together."""

    def __init__(self, bytes_max: int) -> None:
        first, self._first = socket.socketpair()
        self._second, second = socket.socketpair()
        self.ends = first, second
        self._left = self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._forward, args=ends)
            for ends in ((self._first, self._second), (self._second, self._first))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def passed(self) -> int:
        """Bytes that have gone over it, in both directions."""
        return self._bytes_max - self._left

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        while True:
            try:
                data = source.recv(1 << 16)
                with self._lock:
                    allowed = min(len(data), self._left)
                    self._left -= allowed
                target.sendall(data[:allowed])
            except OSError:
                break
            if allowed < len(data) or not data:
                break
        for each in (self._first, self._second):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                break

    def close(self) -> None:
        """Waits for its threads; both ends must have been closed."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._first.close()
        self._second.close()
