"""What the two processes of `tensorbus bench` say to each other: lines of JSON, over a pair of sockets.

    {"value": ...}    what was asked for          {"error": "..."}    what went wrong

Nothing is unpickled, as it would be by the pipes of multiprocessing.
"""

from __future__ import annotations

import json
import select
import socket

from broker.errors import BrokerError


class Pipe:
    """One end. One thread at a time may call."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock`: of a pair; the pipe's from now on."""
        self._sock = sock
        self._reader = sock.makefile("r", encoding="utf-8")

    @staticmethod
    def pair() -> tuple[Pipe, socket.socket]:
        """One end, and what the other one is made of, in a process that is given its descriptor."""
        ours, theirs = socket.socketpair()
        return Pipe(ours), theirs

    def send(self, value: object) -> None:
        """Says something that JSON can say, or a BrokerError."""
        told = {"error": str(value)} if isinstance(value, BrokerError) else {"value": value}
        self._sock.sendall(json.dumps(told).encode() + b"\n")

    def receive(self, timeout_s: float | None = None) -> object:
        """What the other end has said; one line is under way at a time.

        Args:
            timeout_s: how long to wait at most; None for ever.

        Raises:
            BrokerError: it says what went wrong, has ended, or says nothing.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if timeout_s is not None and not poll.poll(timeout_s * 1000):
            raise BrokerError(f"the other process has said nothing for {timeout_s:.0f} s")
        line = self._reader.readline()
        if not line.endswith("\n"):
            raise BrokerError("the other process has ended")
        told = json.loads(line)
        if "error" in told:
            raise BrokerError(str(told["error"]))
        return told["value"]

    def close(self) -> None:
        """The other end is told, by the end of what it reads."""
        self._reader.close()
        self._sock.close()

    def __repr__(self) -> str:
        return f"<Pipe fd={self._sock.fileno()}>"
