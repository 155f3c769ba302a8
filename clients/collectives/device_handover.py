"""How the ranks of one host give one another descriptors of device memory.

Such a descriptor cannot be opened by its name in /proc, as that of a file can (windows.py): it would be another one of
the driver. So each rank listens on a Unix-domain socket whose name it tells the others in a collective; each sends its
descriptor to all; and when a second collective has said that all have, each takes what has come. So nobody waits here.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from broker.limits_devices import DEVICE_STRANGERS_MAX, DEVICE_TOKEN_BYTES

NAME_BYTES: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")
_RIGHTS_BYTES: Final = socket.CMSG_SPACE(array("i").itemsize)


class Handover:
    """This rank's end: where the others send to.

    Attributes:
        name: of the socket, for the others.
    """

    def __init__(self, ranks: int) -> None:
        """Raises:
        OSError: there is no socket to be had.
        """
        self.name = secrets.token_bytes(NAME_BYTES)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.setblocking(False)
            self._listener.bind(_address(self.name))
            self._listener.listen(ranks + DEVICE_STRANGERS_MAX)
        except OSError:
            self.close()
            raise

    def give(self, names: Sequence[bytes], token: bytes, descriptor: int) -> None:
        """Sends a descriptor to others, with the token of its memory. They need not have called anything yet.

        Raises:
            OSError: one of them cannot be reached.
        """
        for name in names:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.setblocking(False)
                sock.connect(_address(name))
                socket.send_fds(sock, [token], [descriptor])

    def take(self, positions: Mapping[bytes, int]) -> dict[int, int]:
        """What others have sent: descriptors, by the positions that belong to the tokens. The caller is to close them.

        Names of sockets are no secret: what comes from another user, or with a token that is not expected, is dropped.
        """
        found: dict[int, int] = {}
        for _ in range(len(positions) + DEVICE_STRANGERS_MAX):
            try:
                sock, _unnamed = self._listener.accept()
            except BlockingIOError:
                break
            with sock, suppress(OSError):
                sock.setblocking(False)
                if not _is_same_user(sock):
                    continue
                token, ancillary, _, _ = sock.recvmsg(DEVICE_TOKEN_BYTES + 1, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC)
                position = positions.get(token)
                for descriptor in _descriptors(ancillary):
                    if position is None or position in found:
                        os.close(descriptor)
                    else:
                        found[position] = descriptor
        return found

    def close(self) -> None:
        """Nobody is expected any more."""
        self._listener.close()


def _address(name: bytes) -> bytes:
    """In the abstract namespace: there is no file to be left behind."""
    return b"\0tensorbus-" + name.hex().encode()


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> array[int]:
    """What a message has brought."""
    came = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            came.frombytes(data[: len(data) - len(data) % came.itemsize])
    return came


def _is_same_user(sock: socket.socket) -> bool:
    told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(told)[1]
    return user == os.geteuid()
