"""The process from which carriers are forked: it has loaded UCXX, which takes a second, and does nothing else.

A process that listens at ucx:// or dials it has one, started when it is first needed. It ends with that process,
whatever ends it, because its socket does; carriers that still have something to deliver go on.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Final

from broker.limits import UCX_START_TIMEOUT_S
from broker.transport.ucx.records import READY, REASON_BYTES_MAX

_PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; import socket; from broker.transport.ucx.forking import fork_carriers; "
    "fork_carriers(socket.socket(fileno=int(sys.argv[1])))"
)
_MOMENT_S: Final = 0.001


class CarriersFailed(Exception):
    """There is no process for carriers; the text says why."""


class Carriers:
    """Those of this process. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process_id(self) -> int | None:
        """Of the process, if there is one."""
        return None if self._process is None else self._process.pid

    def start(self, timeout_s: float = UCX_START_TIMEOUT_S) -> None:
        """Makes sure that the process is there.

        Raises:
            CarriersFailed: it cannot be started, or takes longer; nothing is left of it.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._end()
            if self._control is None:
                self._hear(self._spawn(), timeout_s)

    def _spawn(self) -> socket.socket:
        """Starts the process; what it is given waits until it has loaded UCXX."""
        self._end()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._control = ours
            with theirs:
                # A session of its own: it is not for whoever types Ctrl-C to end it before its owner has ended.
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), *sys.path],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError as error:
            self._end()
            raise CarriersFailed(f"no process for UCX can be started: {error}") from error
        ours.setblocking(False)
        return ours

    def _hear(self, control: socket.socket, timeout_s: float) -> None:
        """Waits until the process says that it is ready."""
        said = b"UCXX was not loaded within %d s" % timeout_s
        if is_ready(control, select.POLLIN, timeout_s):
            try:
                said = control.recv(REASON_BYTES_MAX)
            except OSError:
                said = b""
        if said != READY:
            assert self._process is not None
            self._process.kill()
            self._end()
            raise CarriersFailed(said.decode(errors="replace") or "the process for UCX ended while it started")

    def carry(self, link: socket.socket, door: socket.socket, memory: int) -> bool:
        """Has a carrier made. The descriptors stay the caller's, to be closed.

        Args:
            link: connected with the peer's carrier.
            door: connected with the owner.
            memory: of the rings.

        Returns:
            Whether it will be made; False where too many wait for theirs, after a moment.

        Raises:
            CarriersFailed: there is no process for it, and none can be started.
        """
        rights = array.array("i", [link.fileno(), door.fileno(), memory])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        with self._lock:
            control = self._control or self._spawn()
            try:
                control.sendmsg([b"c"], ancillary)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ETOOMANYREFS):
                    is_ready(control, select.POLLOUT, _MOMENT_S)
                    return False
                try:
                    # Somebody has ended it. Waiting until the new one is ready would keep an event loop.
                    self._spawn().sendmsg([b"c"], ancillary)
                except OSError as again:
                    raise CarriersFailed(f"the process for UCX ends at once: {again}") from again
            return True

    def finish(self) -> None:
        """At the process's end."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """In a forked child: the process is the parent's, and has to see its end."""
        self._lock = threading.Lock()
        if self._control is not None:
            self._control.close()
        _of_the_parent.append(self._process)
        self._control = self._process = None

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            # It ends when its socket does; if it is stopped, nobody waits for it.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


_of_the_parent: Final[list[object]] = []
carriers: Final = Carriers()
"""The one of this process."""
os.register_at_fork(after_in_child=carriers.forget)


def is_ready(sock: socket.socket, event: int, timeout_s: float) -> bool:
    """Whether a socket can be read or written within a time."""
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(max(timeout_s, 0.0) * 1000))
