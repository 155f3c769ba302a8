"""Passing open files between processes, beside the bytes of a Unix-domain socket (unix(7), SCM_RIGHTS).

Descriptors travel with the bytes of a write and arrive with them or before: they are not part of the stream, so a frame
that speaks of one names the file's identity, and its receiver looks for it among those that have arrived. That one is
missing, because the receiver had no room for a descriptor, then harms nothing but that frame.
"""

from __future__ import annotations

import array
import errno
import os
import re
import socket
import stat
import struct
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from broker.buffers import Buffer
from broker.limits import DESCRIPTORS_WAITING_MAX, IOV_BUFFERS_MAX
from broker.transport.calls import DESCRIPTORS_AT_ONCE_MAX
from broker.transport.shared_memory import Handle, SharedMemory
from broker.transport.sockets import SocketConnection, SocketWire
from broker.wires import Wire

_ANONYMOUS: Final = 1 << 62
"""Added to the numbers of eventfds, so that none is taken for a file's."""
_EVENTFD: Final = "anon_inode:[eventfd]"
"""What the system calls one (proc(5), /proc/pid/fd); the paths of files begin with a slash."""


def identity_of(descriptor: int) -> int:
    """What an open file is called in frames: a number that is the same in all processes of the host.

    It is the file's number. Eventfds all have the same one, and a number of their own that the system tells (proc(5),
    /proc/pid/fdinfo); 0 where it does not.
    """
    status = os.fstat(descriptor)
    if stat.S_IFMT(status.st_mode):
        return status.st_ino
    if not is_eventfd(descriptor):
        # What the system tells of others, as of an epoll, may be as long as their maker likes.
        return 0
    try:
        told = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^eventfd-id:\s*(\d+)$", told, re.MULTILINE)
    return _ANONYMOUS + int(found[1]) if found else 0


def is_eventfd(descriptor: int) -> bool:
    """Whether an open file is an eventfd, of which alone it is known what a write of 8 bytes does."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == _EVENTFD
    except OSError:
        return False


class HasDescriptor(Protocol):
    """What keeps a descriptor open until it has left."""

    descriptor: int


class Passage:
    """The descriptors that leave by and arrive on one connection.

    Whoever keeps it keeps the connection open, unless that is closed by a call.

    Attributes:
        enabled: whether both ends have agreed to pass descriptors.
    """

    __slots__ = ("_arrived", "_devices", "_leaving", "_socket", "enabled")

    def __init__(self, sock: socket.socket) -> None:
        self.enabled = False
        self._socket = sock
        self._leaving: deque[HasDescriptor] = deque()
        self._arrived: dict[int, int] = {}
        # Those of devices' memory have the number of the driver's file, all the same one: the others, in their order.
        self._devices: list[tuple[int, int]] = []

    def give(self, memory: HasDescriptor) -> None:
        """Lets a memory's descriptor leave with the next write."""
        self._leaving.append(memory)

    def adopt(self, identity: int, size_bytes: int, *, common: bool = False, read_only: bool = False) -> SharedMemory:
        """Maps memory whose descriptor has arrived; see SharedMemory.

        Raises:
            InvalidValue, LimitExceeded: it has not arrived, or cannot be mapped; see SharedMemory.
        """
        descriptor = self._arrived.pop(identity, -1)
        return SharedMemory.adopt(descriptor, size_bytes, common=common, read_only=read_only)

    def take(self, identity: int) -> Handle | None:
        """An eventfd that has arrived; None when there is none, and when what has arrived is something else."""
        descriptor = self._arrived.pop(identity, -1)
        if descriptor < 0:
            return None
        handle = Handle(descriptor)
        return handle if is_eventfd(descriptor) else None

    def take_device(self, identity: int) -> Handle | None:
        """The next descriptor of a device's memory that has arrived with this number, which several may have."""
        descriptor = self._arrived.pop(identity, -1)
        for position, (known, next_one) in enumerate(self._devices):
            if known == identity:
                self._arrived[identity] = next_one
                del self._devices[position]
                break
        return Handle(descriptor) if descriptor >= 0 else None

    def leaving(self) -> list[HasDescriptor]:
        """What the next write takes along."""
        return [self._leaving.popleft() for _ in range(min(len(self._leaving), DESCRIPTORS_AT_ONCE_MAX))]

    @property
    def has_leaving(self) -> bool:
        """Whether the next write has something to take along."""
        return bool(self._leaving)

    def put_back(self, memories: Sequence[HasDescriptor]) -> None:
        """The write did not happen."""
        self._leaving.extendleft(reversed(memories))

    def arrived(self, descriptors: Sequence[int]) -> None:
        """Takes descriptors over; those that nobody fetches, beyond a bound, are closed."""
        for descriptor in descriptors:
            identity = identity_of(descriptor)
            if len(self._arrived) + len(self._devices) >= DESCRIPTORS_WAITING_MAX:
                os.close(descriptor)
            elif identity not in self._arrived:
                self._arrived[identity] = descriptor
            elif stat.S_ISCHR(os.fstat(descriptor).st_mode):
                self._devices.append((identity, descriptor))
            else:
                os.close(descriptor)

    def close(self) -> None:
        """Closes what nobody has fetched."""
        self._leaving.clear()
        while self._arrived:
            os.close(self._arrived.popitem()[1])
        while self._devices:
            os.close(self._devices.pop()[1])


_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""


def peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end of a Unix-domain socket, as they were when it was connected."""
    process, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return process, user


class LocalWire(SocketWire):
    """The bytes of a Unix-domain socket, and the descriptors that pass beside them."""

    __slots__ = ("_passage",)

    def __init__(self, sock: socket.socket, passage: Passage) -> None:
        super().__init__(sock)
        self._passage = passage

    def receive_into(self, buffers: list[memoryview]) -> int:
        passage = self._passage
        if not passage.enabled:
            return self.receive(buffers, None)
        descriptors: list[int] = []
        size = self.receive(buffers, descriptors)
        if descriptors:
            passage.arrived(descriptors)
        return size

    def send(self, buffers: list[Buffer]) -> int:
        if buffers and self._passage._leaving:
            return self._send_beside(buffers)
        return self.write(buffers)

    def _send_beside(self, buffers: list[Buffer]) -> int:
        """Sends, and descriptors with it."""
        leaving = self._passage.leaving()
        if self._passage.has_leaving:
            # What these bytes speak of may be among the others, which leave with the next writes.
            buffers = [memoryview(next(filter(len, buffers)))[:1]]
        # One that was closed meanwhile is missed by its receiver alone.
        rights = array.array("i", [memory.descriptor for memory in leaving if memory.descriptor >= 0])
        if not rights:
            return self.write(buffers)
        try:
            return self._socket.sendmsg(
                buffers[:IOV_BUFFERS_MAX], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL
            )
        except BlockingIOError:
            self._passage.put_back(leaving)
            return 0
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                # The user has too many descriptors under way: the bytes go alone, and their receiver does without.
                return self.write(buffers)
            raise self.failure(error) from error


class LocalConnection(SocketConnection):
    """A connection over a Unix-domain socket, which can pass descriptors."""

    __slots__ = ("_passage",)

    def __init__(self, sock: socket.socket, local_address: str, peer_address: str) -> None:
        super().__init__(sock, local_address, peer_address)
        self._passage = Passage(sock)
        self._bytes = LocalWire(sock, self._passage)

    @property
    def wire(self) -> Wire:
        return self._bytes

    @property
    def local_host(self) -> str:
        # Who else is on this host finds this end there.
        return "127.0.0.1"

    @property
    def peer_user(self) -> int:
        return peer_credentials(self._socket)[1]

    @property
    def peer_process(self) -> int:
        return peer_credentials(self._socket)[0]

    @property
    def passage(self) -> Passage:
        return self._passage

    def close(self) -> None:
        super().close()
        self._passage.close()

    def disown(self) -> None:
        super().disown()
        self._passage.close()

    def abort(self) -> None:
        super().abort()
        self._passage.close()
