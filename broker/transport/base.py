"""The contract of every transport: a reliable, ordered stream of bytes between two processes, driven by readiness.

Nothing here blocks except `Transport.connect`. A call moves what can be moved now and says how much; a caller that got
0 waits until `fileno()` is ready, in an event loop (`loop.add_reader`, `loop.add_writer`) or with `select.poll`, and
calls again. Readiness is level-triggered, and may be spurious: a call after a wake-up may still return 0.

Who may call at once. One thread may receive from a connection while another sends on it. Two threads may not receive,
or send, at the same time, and `close` and `abort` may not run beside any other call on the same connection: the thread
that polls a connection closes it, and other threads wake that thread to ask for it. Different connections are
independent. `Transport.connect` and `Transport.listen` may be called from any thread at any time.

Buffers. A buffer is lent for the time of the call only: when `send` returns, the kernel has its own copy of the bytes
that were counted; when `receive_into` returns, nothing writes to the buffers any more. Buffers are flat bytes (see
broker.buffers). Nothing checks that per call: a contiguous array of another format or shape stands for its bytes too,
and one that is not contiguous raises BufferError or TypeError, with nothing moved. But every count is in bytes, so a
caller that means to go on after a partial `send` needs `memoryview(array).cast("B")`, whose slices count alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from broker.buffers import Buffer
from broker.transport.addresses import Address
from broker.transport.proofs import Certificate
from broker.wires import CallingWire, Wire

if TYPE_CHECKING:
    from broker.transport.descriptors import Passage


class _Closing(ABC):
    """Something that `close` ends and that works as a context manager."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Ends it; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


class Connection(_Closing):
    """One end of a stream of bytes. See the module for threads and buffers."""

    __slots__ = ("_closed", "_local_address", "_peer_address")

    def __init__(self, local_address: str, peer_address: str) -> None:
        self._local_address = local_address
        self._peer_address = peer_address
        self._closed = False

    @property
    def local_address(self) -> str:
        """This end, fit for a log; still known after close."""
        return self._local_address

    @property
    def peer_address(self) -> str:
        """The other end, fit for a log; still known after close."""
        return self._peer_address

    @property
    def closed(self) -> bool:
        """Whether `close` or `abort` was called here. A peer that went away shows in the next call instead."""
        return self._closed

    @property
    def same_host(self) -> bool:
        """Whether both ends are known to be on one host, where another transport would be faster."""
        return False

    @property
    def sends_when_readable(self) -> bool:
        """Whether `fileno()` becomes readable, and never writable, when `send` can go on that took less than it got.

        Its owner then calls both `receive_into` and, if it has something to send, `send` when it is readable.
        """
        return False

    @property
    def opening(self) -> bool:
        """Whether the two ends are still agreeing on how to speak.

        That goes on in every `receive_into`, also in one without room; what is sent meanwhile waits.
        """
        return False

    @property
    def private(self) -> bool:
        """Whether nobody on the way between the two ends can read along or change anything, whatever the network is."""
        return False

    @property
    def peer_certificate(self) -> Certificate | None:
        """The certificate that the peer has proven to have; None before it has, and where it has none."""
        return None

    @property
    def peer_user(self) -> int | None:
        """The number of the user whose process is at the other end, as the kernel says; None where it cannot."""
        return None

    @property
    def peer_process(self) -> int:
        """The process at the other end, as the kernel numbers it for this one; 0 where it does not say."""
        return 0

    @property
    def local_host(self) -> str:
        """This end's own address on the network between the two, without a port; empty where there is none."""
        return ""

    @property
    def passage(self) -> Passage | None:
        """How descriptors pass over this connection; None where they cannot."""
        return None

    @property
    def lends(self) -> bool:
        """Whether `lend` may ever lend something."""
        return False

    def lend(self, size_bytes: int) -> memoryview | None:
        """Memory in which the next bytes lie already, so many and no more, for an owner that passes them on unchanged.

        What is given as the first buffer of the next `receive_into`, whole, is filled by it without a copy. It is the
        owner's from then on, to read.

        Returns:
            None where the bytes are to be received into memory of the owner's.
        """
        return None

    @property
    def wire(self) -> Wire:
        """The same `receive_into` and `send` for whoever calls them for every message, with lists of buffers."""
        return CallingWire(self.receive_into, self.send)

    @abstractmethod
    def fileno(self) -> int:
        """The descriptor to wait on: readable when `receive_into`, writable when `send` has something to do; see also
        `sends_when_readable`.

        Returns:
            The same descriptor for the connection's life, -1 after close. Take it out of every loop and poll set before
            closing: the number is free for another file then.
        """

    @abstractmethod
    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        """Takes the bytes that are there, filling the buffers in turn.

        Args:
            buffers: writable; empty ones are skipped. At most the first IOV_BUFFERS_MAX are used. Without room for a
                byte in them the call returns 0 and cannot tell whether the peer has closed.

        Returns:
            The number of bytes written to the buffers; 0 when nothing is there now.

        Raises:
            ConnectionClosed: the peer has closed or the link failed, and all bytes that had arrived were taken; or this
                end is closed. The connection stays to be closed by its owner.
        """

    @abstractmethod
    def send(self, buffers: Sequence[Buffer]) -> int:
        """Hands bytes to the kernel, the buffers in turn.

        Args:
            buffers: the bytes to send; empty ones are skipped. At most the first IOV_BUFFERS_MAX are used.

        Returns:
            The number of bytes accepted, maybe fewer than given and ending anywhere within a buffer; 0 when none can be
            accepted now, or when none were given.

        Raises:
            ConnectionClosed: the peer has closed or the link failed, or this end is closed. Bytes accepted earlier may
                not have arrived; bytes that the peer sent before may still be received.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the connection in order; a second call does nothing.

        What `send` has accepted is still delivered, after this call and even after this process; the peer then reads
        the end. What has arrived and was not received is dropped. A peer that goes on sending afterwards is cut off,
        on tcp with the loss of what it has not yet taken: let the peer fall silent first where every byte counts.
        """

    @abstractmethod
    def end_sending(self) -> None:
        """Lets the peer read the end, and keeps this end open: when the peer closes, poll(2) reports a hang-up."""

    @abstractmethod
    def disown(self) -> None:
        """Gives the descriptor back in a forked child, without a trace on the connection, which stays the parent's."""

    @abstractmethod
    def abort(self) -> None:
        """Ends the connection at once, dropping what is under way where the transport can; a second call does nothing.

        On tcp the peer gets a reset. For broken protocols and for deadlines.
        """

    def __repr__(self) -> str:
        state = "CLOSED" if self._closed else "OPEN"
        return f"<Connection {state} local={self._local_address} peer={self._peer_address} fd={self.fileno()}>"


def flat(buffer: Buffer) -> memoryview:
    """The bytes of a buffer, for a connection that takes them one by one.

    Raises:
        BufferError: it is not contiguous.
    """
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise BufferError("a buffer that is not contiguous cannot be sent or filled")
    return view.cast("B") if view.nbytes else memoryview(b"")


class Listener(_Closing):
    """An address at which connections arrive. One thread at a time may call it."""

    __slots__ = ()

    @property
    @abstractmethod
    def address(self) -> Address:
        """The address to dial, with the real port where 0 was asked for."""

    @abstractmethod
    def fileno(self) -> int:
        """The descriptor to wait on: readable when somebody waits to be accepted; -1 after close."""

    @property
    def files(self) -> list[Path]:
        """What it was read from how connections are accepted, such as certificates; some may not exist."""
        return []

    def reload(self) -> None:  # noqa: B027 - most have nothing to read
        """Reads `files` again: connections that are accepted from here on are accepted by what they say now.

        Raises:
            InvalidValue: they cannot be used, and all stays as it was.
        """

    def stays_watched(self) -> None:  # noqa: B027 - most have nothing to gain from it
        """Says that the caller waits for `fileno()` until close, and calls `accept` each time that it is readable.

        A transport whose connections come over one socket then need not wake each of them for all the others.
        """

    @abstractmethod
    def accept(self) -> Connection | None:
        """Takes the next connection that waits.

        Returns:
            The connection, which the caller owns; None when nobody waits, or when the one who waited has given up.

        Raises:
            LimitExceeded: no descriptor is left. The connection goes on waiting and `fileno()` stays readable, so
                the caller pauses listening until it has closed something.
            ConnectionClosed: the listener is closed or has failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends listening; a second call does nothing.

        Those who wait to be accepted are refused or cut off; connections accepted before live on. A transport that left
        a socket file removes it, if it is still its own. On zmq+tcp the address stays in use until the connections that
        were accepted there are closed.
        """

    def retire(self) -> bool:
        """Closes unless somebody is known to wait to be accepted; says whether it is closed.

        A transport that can tell cuts nobody off; for the others this is `close`.
        """
        self.close()
        return True

    def __repr__(self) -> str:
        state = "CLOSED" if self.fileno() < 0 else "OPEN"
        return f"<Listener {state} address={self.address} fd={self.fileno()}>"


class Transport(ABC):
    """A way to move bytes, chosen by the scheme of an address. It has no state of its own; any thread may call it."""

    __slots__ = ()

    @property
    @abstractmethod
    def scheme(self) -> str:
        """The scheme that it serves, as in `tcp`."""

    @abstractmethod
    def connect(self, address: Address, timeout_s: float) -> Connection:
        """Dials an address; blocks until the connection stands or the time is up.

        Args:
            address: one of this scheme.
            timeout_s: for the whole attempt, in seconds; looking a host name up is bounded by the system's resolver
                instead.

        Returns:
            The connection, which the caller owns. The peer's process may not have accepted it yet.

        Raises:
            ConnectError: with the address and, in plain words, what the attempt met. Nothing is left open.
        """

    def finish(self) -> None:  # noqa: B027 - most have nothing to wait for
        """At the process's end, when all connections are closed: waits a moment for what `send` has accepted.

        There is nothing to wait for where the kernel delivers it.
        """

    @abstractmethod
    def listen(self, address: Address) -> Listener:
        """Starts to accept connections at an address; does not block beyond looking a host name up.

        Raises:
            ListenError: the address is in use, not allowed or not of this machine; the text says what to do.
        """
