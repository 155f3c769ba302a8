"""Several workers behind one port: the process that starts them, starts them again, and ends them.

It binds the addresses, forks once for each worker, and serves nothing itself. A worker is a whole broker, with its own
process, loop and state; server_seat.py says how clients find theirs. One that ends, however it does, is started again
with its number at the same sockets, empty, as a broker that is started again: nobody else has its topics meanwhile.

    parent --lifeline (a socket pair for each)--> worker     its end says: drain, and end
           <--a line: where its HTTP interface is ---        says: it serves

So a worker ends when the parent does, whatever has ended it, and a signal that a whole group of processes gets (Ctrl-C,
or a service manager's) comes to no worker twice.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import Final, NoReturn, Protocol, Self

import click

from broker.config import ADMIN_OFF, Config
from broker.errors import BrokerError, ConfigError
from broker.limits import WORKERS_MAX
from broker.masking import masked
from broker.server_admission import Admission, dialled
from broker.server_seat import Doors, Seat
from broker.transport import registry
from broker.transport.addresses import parse
from broker.transport.sockets import SocketListener

log = logging.getLogger(__name__)

SHARED_SCHEMES: Final = ("tcp", "tls", "unix")
DELAY_FIRST_S: Final = 0.1
DELAY_MAX_S: Final = 5.0
"""Before a worker is started again: twice as long each time, from the first after it has lived for long."""
LIVED_S: Final = 10.0
END_S: Final = 5.0
"""Beyond the drain time-out: how long a worker may take to end."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LINE_BYTES_MAX: Final = 4096
_PORT_MAX: Final = 65_535


class Serve(Protocol):
    """Serves in this process until it is to end."""

    def __call__(
        self, config: Config, tell: Callable[[Mapping[str, object]], None], seat: Seat, lifeline: int
    ) -> None: ...


def check_workers(config: Config) -> None:
    """Refuses what cannot be shared among workers.

    Raises:
        ConfigError: there are too many, or a setting that they cannot have together; the text says what to do.
    """
    what, count = "setting workers", config.workers
    if count > WORKERS_MAX:
        raise ConfigError(what, count, f"is over the limit of {WORKERS_MAX}; as many as there are cores is usual")
    for text in config.listen:
        if parse(text).scheme not in SHARED_SCHEMES:
            raise ConfigError(
                what, count, f"several cannot share {text}: what is said first there cannot be seen by who accepts, so "
                "a client cannot be passed on to the worker that it means. Listen at tcp://, tls:// or unix:// alone, "
                "or serve with --workers 1",
            )  # fmt: skip
    for policy in config.topics:
        if policy.settings.get("dead_letter"):
            raise ConfigError(
                what, count, f"dead letters of {policy.filter!r} go to {policy.settings['dead_letter']!r}, which "
                "another worker may have; leave dead_letter out, and they go to $dead/ and the topic's name",
            )  # fmt: skip
    if config.admin != ADMIN_OFF:
        port = int(config.admin.rpartition(":")[2])
        if port and port + count - 1 > _PORT_MAX:
            raise ConfigError(what, count, f"worker {count - 1} would have the admin port {port + count - 1}")


def admin_of(admin: str, number: int) -> str:
    """Where a worker has its HTTP interface: the port that is configured plus its number; any, where that is 0."""
    host, _, port = admin.rpartition(":")
    return f"{host}:{int(port) + number}" if admin != ADMIN_OFF and int(port) else admin


class _Worker:
    """One of them, as its parent knows it."""

    __slots__ = ("admin", "delay_s", "due_s", "ended", "lifeline", "number", "pid", "ready", "started_s")

    def __init__(self, number: int, admin: str) -> None:
        self.number = number
        self.admin = admin
        self.pid = 0
        self.ended = -1
        """A pidfd, readable when the process has ended; -1 while there is none."""
        self.lifeline: socket.socket | None = None
        self.ready = False
        self.started_s = 0.0
        self.delay_s = 0.0
        self.due_s = 0.0

    def __repr__(self) -> str:
        return f"<Worker {self.number} pid={self.pid} ready={self.ready}>"


class Workers:
    """All workers of one broker; `run` returns when they have ended."""

    def __init__(
        self,
        config: Config,
        serve: Serve,
        echo: Callable[[Mapping[str, object]], None],
        read_again: Callable[[], Config],
    ) -> None:
        """Binds the addresses.

        Args:
            config: the settings of all together.
            serve: is called in each worker's process.
            echo: is told where the workers listen, once all do.
            read_again: gives the settings as they are when SIGHUP comes.

        Raises:
            ConfigError, InvalidValue, ListenError: it cannot be served so.
        """
        check_workers(config)
        self._config = config
        self._serve = serve
        self._echo = echo
        self._read_again = read_again
        self._listeners = _bound(config)
        self._doors = Doors(config.workers)
        self._workers = [_Worker(number, admin_of(config.admin, number)) for number in range(config.workers)]
        self._selector = selectors.DefaultSelector()
        self._wakes, self._woken = socket.socketpair()
        self._told = self._stopping = False
        self._kill_s = 0.0
        self._failure = ""

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM.

        Raises:
            BrokerError: a worker has ended before all of them served, and has said why.
        """
        for end in (self._wakes, self._woken):
            end.setblocking(False)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _noted)
        self._selector.register(self._wakes, selectors.EVENT_READ, self._signalled)
        for worker in self._workers:
            self._start(worker)
        while not (self._stopping and all(worker.ended < 0 for worker in self._workers)):
            for key, _ in self._selector.select(self._pause_s()):
                key.data()
            self._look_around()
        if self._failure:
            raise BrokerError(self._failure)

    # Events.

    def _signalled(self) -> None:
        for number in self._wakes.recv(64):
            if number == signal.SIGHUP:
                self._take_over()
                for worker in self._workers:
                    if worker.ended >= 0:
                        os.kill(worker.pid, signal.SIGHUP)
            elif self._stopping:
                self._kill()
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            else:
                self._stop()

    def _take_over(self) -> None:
        """A worker that is started again has the permissions and quotas that the others have by then."""
        with suppress(BrokerError):  # Each worker says in the log why it stays with what it has.
            config = self._read_again()
            self._config = replace(self._config, permissions=config.permissions, tenants=config.tenants)

    def _heard(self, worker: _Worker) -> None:
        """A worker serves, or has closed its end."""
        assert worker.lifeline is not None
        line = worker.lifeline.recv(_LINE_BYTES_MAX)
        if not line:
            self._selector.unregister(worker.lifeline)
            return
        worker.ready = True
        worker.admin = json.loads(line).get("admin", worker.admin).partition("://")[2] or worker.admin
        if self._told:
            log.warning("worker.started worker=%d pid=%d admin=%s", worker.number, worker.pid, worker.admin)
        elif all(each.ready for each in self._workers):
            self._tell(json.loads(line).get("admin", "").partition("://")[0])

    def _tell(self, scheme: str) -> None:
        self._told = True
        for listener in self._listeners:
            self._echo({"listening": str(dialled(listener.address, self._config))})
        for worker in self._workers:
            if worker.admin != ADMIN_OFF:
                self._echo({"admin": f"{scheme}://{worker.admin}"})

    def _ended(self, worker: _Worker) -> None:
        _, status = os.waitpid(worker.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._selector.unregister(worker.ended)
        os.close(worker.ended)
        worker.ended = -1
        if worker.lifeline is not None:
            with suppress(KeyError):
                self._selector.unregister(worker.lifeline)
            worker.lifeline.close()
            worker.lifeline = None
        if self._stopping:
            return
        if not self._told:
            self._failure = f"worker {worker.number} has ended with status {code} before all workers served"
            self._stop()
            return
        now_s = time.monotonic()
        lived = worker.ready and now_s - worker.started_s > LIVED_S
        worker.delay_s = DELAY_FIRST_S if lived or not worker.delay_s else min(2 * worker.delay_s, DELAY_MAX_S)
        worker.due_s, worker.ready = now_s + worker.delay_s, False
        log.error(
            "worker.ended worker=%d pid=%d status=%d started_again_in_s=%g",
            worker.number, worker.pid, code, worker.delay_s,
        )  # fmt: skip

    def _pause_s(self) -> float | None:
        if self._stopping:
            return max(0.0, self._kill_s - time.monotonic()) if self._kill_s else None
        due = [worker.due_s for worker in self._workers if worker.ended < 0]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _look_around(self) -> None:
        now_s = time.monotonic()
        if self._stopping:
            if self._kill_s and now_s >= self._kill_s:
                self._kill()
            return
        for worker in self._workers:
            if worker.ended < 0 and now_s >= worker.due_s:
                self._start(worker)

    # Processes.

    def _start(self, worker: _Worker) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        # What comes meanwhile is for the parent, or for the child once it has its own handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        worker.pid = os.fork()
        if not worker.pid:
            _be_worker(lambda: self._become(worker, ours, theirs))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        worker.lifeline, worker.started_s = ours, time.monotonic()
        worker.ended = os.pidfd_open(worker.pid)
        self._selector.register(worker.ended, selectors.EVENT_READ, lambda: self._ended(worker))
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._heard(worker))

    def _become(self, worker: _Worker, ours: socket.socket, theirs: socket.socket) -> None:
        """In the worker's process: lets go of what is the parent's, and serves."""
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # SIGHUP waits until there is somebody who hears it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        ours.close()
        self._selector.close()
        self._wakes.close()
        self._woken.close()
        for other in self._workers:
            if other.lifeline is not None:
                other.lifeline.close()
            if other.ended >= 0:
                os.close(other.ended)
        for listener in self._listeners:
            listener.inherited()
        lines: list[Mapping[str, object]] = []
        wanted = len(self._listeners) + (self._config.admin != ADMIN_OFF)

        def tell(line: Mapping[str, object]) -> None:
            lines.append(line)
            if len(lines) == wanted:
                # Where HTTP is, if anywhere, is the last of them.
                theirs.sendall(json.dumps(line).encode())

        # What the broker may use is what its workers may use together.
        memory_bytes = max(1, self._config.memory_max_bytes // self._config.workers)
        config = replace(self._config, admin=worker.admin, memory_max_bytes=memory_bytes)
        self._serve(config, tell, Seat(worker.number, self._listeners, self._doors), theirs.fileno())

    def _stop(self) -> None:
        """Has all workers drain and end; nobody is accepted any more."""
        self._stopping = True
        self._kill_s = time.monotonic() + self._config.drain_timeout_s + END_S
        for listener in self._listeners:
            listener.close()
        for worker in self._workers:
            if worker.lifeline is not None:
                with suppress(OSError):
                    worker.lifeline.shutdown(socket.SHUT_WR)

    def _kill(self) -> None:
        self._kill_s = 0.0
        for worker in self._workers:
            if worker.ended >= 0:
                log.error("worker.killed worker=%d pid=%d", worker.number, worker.pid)
                os.kill(worker.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        signal.set_wakeup_fd(-1)
        for worker in self._workers:
            if worker.lifeline is not None:
                worker.lifeline.close()
        for listener in self._listeners:
            listener.close()
        self._doors.close()
        self._selector.close()
        self._wakes.close()
        self._woken.close()

    def __repr__(self) -> str:
        return f"<Workers {self._workers}>"


def _bound(config: Config) -> Sequence[SocketListener]:
    """Listens at all addresses, for all workers.

    Raises:
        InvalidValue: an address is malformed.
        ListenError: an address cannot be listened on, or strangers could get in there. Nothing is left listening.
    """
    admission = Admission(config)
    found: list[SocketListener] = []
    try:
        for address in admission.places(config.listen):
            listener = registry.listen(address)
            assert isinstance(listener, SocketListener), "check_workers has refused all others"
            found.append(listener)
    except BaseException:
        for listener in found:
            listener.close()
        raise
    finally:
        admission.close()
    return found


def _be_worker(serve: Callable[[], None]) -> NoReturn:
    """Is a worker, to the end of the process; never returns into what its parent was doing."""
    status = 1
    try:
        serve()
        status = 0
    except BrokerError as error:
        click.echo(f"tensorbus: {masked(str(error))}", err=True)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _noted(number: int, frame: FrameType | None) -> None:
    """The signal is read from the wake-up descriptor."""
