"""How bytes get on and off a connection, and who hears what they say, in the form in which compiled code calls it.

A session knows its connection as a Wire and its listener as a Receiver: what is called for every message is a method
whose types are known, and not whatever can be called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.buffers import Buffer


class Wire:
    """One end of a connection, without what else it can do; see transport.base.Connection for both methods."""

    __slots__ = ()

    def receive_into(self, buffers: list[memoryview]) -> int:
        """Takes the bytes that are there; returns how many, 0 when none are there now."""
        raise NotImplementedError

    def send(self, buffers: list[Buffer]) -> int:
        """Hands over bytes; returns how many were taken."""
        raise NotImplementedError


class CallingWire(Wire):
    """A wire whose bytes move by two functions."""

    __slots__ = ("_receive", "_send")

    def __init__(
        self, receive: Callable[[Sequence[memoryview]], int] | None, send: Callable[[Sequence[Buffer]], int] | None
    ) -> None:
        """Args:
        receive: as `receive_into`; None where nothing is received.
        send: as `send`; None where nothing is sent.
        """
        self._receive = receive
        self._send = send

    def receive_into(self, buffers: list[memoryview]) -> int:
        assert self._receive is not None
        return self._receive(buffers)

    def send(self, buffers: list[Buffer]) -> int:
        assert self._send is not None
        return self._send(buffers)
