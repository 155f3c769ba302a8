"""What drives a synchronous client: its links, one after the other, and the thread that keeps it alive.

Whoever calls the client sends and reads by itself (pump.py). The keeper thread does what nobody else does meanwhile:
heartbeats, batches that are due, reconnecting, and the pump when nobody has waited for a while, so that a client stays
alive while its application computes.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from broker.errors import ConnectError, ConnectionClosed, PermissionDenied, TimeoutError
from broker.limits import ANSWER_TIMEOUT_S
from broker.protocol.codes import Code
from broker.protocol.session import Phase
from clients.connection import lifetimes
from clients.connection.core import Core
from clients.connection.dialling import Dialling, Retries, reopened
from clients.connection.holding import Holding
from clients.connection.pump import Pump
from clients.connection.reconnected import Reconnected
from clients.connection.signals import Signal

log = logging.getLogger(__name__)

TICK_S: Final = 0.1
IDLE_S: Final = 0.05
"""When nobody has waited for so long, the keeper reads."""
LONG_S: Final = 0.005
"""A batch that is due later than this needs no sleep of its own: a poll, which counts in milliseconds, ends in time."""
POLL_S: Final = 0.001
NO_BATCH_S: Final = 60.0
"""How long a batch is away that does not exist."""


class Driver(Pump):
    """One synchronous client's links and threads."""

    def __init__(self, core: Core, dialling: Dialling) -> None:
        """Connects.

        Raises:
            ConnectError: no broker can be reached.
            PermissionDenied: the broker does not let this client in.
        """
        try:
            super().__init__(core, returns=dialling.reconnect_timeout_s > 0)
        except OSError as error:
            where = ", ".join(str(address) for address in dialling.addresses)
            raise ConnectError(where, f"{error.strerror}: raise RLIMIT_NOFILE (ulimit -n)") from error
        self.holding = Holding(core)
        self._dialling = dialling
        self._eager = 0
        try:
            link = dialling.dial(dialling.connect_timeout_s, core.allocate)
        except BaseException:
            self._close_wakes()
            raise
        core.places.call = self.call
        with self.lock:
            self._adopt(link)
        self._keeper = threading.Thread(target=self._keep, name=f"tensorbus-keeper-{core.name}", daemon=True)
        lifetimes.open_drivers.add(self)
        try:
            self._keeper.start()
        except BaseException as error:
            # Ctrl-C may come when it has started; then it ends by itself.
            lifetimes.open_drivers.discard(self)
            with self.lock:
                self._shut(ConnectionClosed(str(error)))
                self._close_wakes()
            if not isinstance(error, RuntimeError):
                raise
            where = ", ".join(str(address) for address in dialling.addresses)
            raise ConnectError(
                where, f"{error}: raise RLIMIT_NPROC (ulimit -u), or pids.max of the container"
            ) from error

    def expect_results(self, *, more: bool) -> None:
        """While results of asynchronous work are due, the keeper reads whenever nobody else does."""
        self._eager += 1 if more else -1
        if more:
            self._keeper_wake.set()

    def close(self, reason: str, timeout_s: float) -> None:
        """Closes in order: what is queued still leaves. Every waiter gets ConnectionClosed."""
        with self.lock:
            if not self._closing:
                self._closing = True
                self._say_goodbye(reason, timeout_s)
                self._shut(ConnectionClosed(reason, Code.NORMAL))
        if threading.current_thread() is not self._keeper:
            self._keeper.join(timeout_s)
            if not self._keeper.is_alive():
                with self.lock:
                    self._close_wakes()

    def _say_goodbye(self, reason: str, timeout_s: float) -> None:
        """Lets what is queued leave, then a CLOSE. The lock is held."""
        link = self._link
        if link is None:
            return
        self.core.farewell()
        link.session.close(Code.NORMAL, reason)
        self.core.closing()
        self.flush()
        deadline = time.monotonic() + timeout_s
        while self._link is not None and link.session.phase is Phase.CLOSING and time.monotonic() < deadline:
            try:
                self.block(Signal(), 0.01, "the last frames to leave")
            except TimeoutError:
                self.flush()

    def abandon(self) -> None:
        """In a forked child: lets go of the parent's connection without a word on it."""
        self._lock_anew()
        self._closing = True
        self.core.arenas.forked()
        self.core.lines.forget()
        self.core.incoming.leases.forget()
        link = self._detach()
        if link is not None:
            link.connection.disown()
        self._close_wakes()
        self.core.close(ConnectionClosed(lifetimes.FORKED))

    def _keep(self) -> None:
        try:
            self._keep_alive()
        except Exception as error:
            # A fault of ours. Without the keeper the client would look alive and not be it.
            log.exception("keeper.failed name=%r", self.core.name)
            with self.lock:
                self._shut(ConnectionClosed(f"the client failed: {type(error).__name__}: {error}"))
        lifetimes.open_drivers.discard(self)
        with self.lock:
            # Who still polls is about to see the end; then `close` does this.
            if not self._pumping:
                self._close_wakes()

    def _keep_alive(self) -> None:
        last_tick_ns = 0
        while True:
            if self.holding.gone:
                self.close("nothing refers to the client any more", ANSWER_TIMEOUT_S)
            with self.lock:
                if self.core.closed is not None:
                    self._shut(self.core.closed)
                    return
                now_ns = time.monotonic_ns()
                if now_ns - last_tick_ns >= TICK_S * 1e9 or self.core.outgoing.open_batches:
                    last_tick_ns = now_ns
                    self.core.tick(now_ns)
                    if self._read_lines():
                        self.wake_waiters()
                    self.flush()
                    if self._session is not None:
                        self._check_session(self._session)
                pause_s = self._until_batch()
                self._keeper_watches = pause_s < LONG_S
                offline, idle = self._session is None, time.monotonic() - self._last_wait > IDLE_S
                owes = self._session is not None and self._session.has_unsent()
                leads = not (offline or self._pumping or self._followers) and (self._eager > 0 or owes or idle)
                if leads and not self._keeper_watches:
                    self._pump(min(TICK_S, pause_s - POLL_S))
                    continue
            if offline:
                self._reconnect()
                continue
            self._pause()

    def _pause(self) -> None:
        """Waits until the keeper has something to do. Without the lock, so that a busy publisher is not disturbed."""
        while not self._closing:
            pause_s = self._until_batch()
            if pause_s >= LONG_S:
                # From here on who opens a batch wakes the keeper. One that was opened before that is seen here.
                self._keeper_watches = False
                pause_s = self._until_batch()
            if pause_s <= 0:
                return
            if pause_s >= LONG_S:
                self._keeper_wake.wait(min(IDLE_S, pause_s - POLL_S))
                return
            # A sleep, because poll counts in milliseconds. Not a longer one, because other topics' batches may leave
            # sooner than the one that is open.
            time.sleep(min(pause_s, self.core.outgoing.shortest_window_ns / 1e9))

    def _until_batch(self) -> float:
        """How long until a batch has to leave, in seconds. May be called without the lock."""
        due_ns = self.core.outgoing.batches_due_ns()
        return NO_BATCH_S if due_ns is None else (due_ns - time.monotonic_ns()) / 1e9

    def _reconnect(self) -> None:
        """Tries until a broker answers, or the time is over. Called by the keeper, without the lock."""
        retries = Retries(self._dialling)
        while not (self._closing or self.holding.gone):
            with self.lock:
                self.core.tick(time.monotonic_ns())
            try:
                link = self._dialling.dial(retries.timeout_s, self.core.allocate)
            except (ConnectError, PermissionDenied) as error:
                end = retries.end(error)
                if end is not None:
                    with self.lock:
                        self._shut(end)
                    return
                self._keeper_wake.wait(retries.pause_s())
                continue
            with self.lock:
                if self._closing:
                    link.connection.close()
                    return
                self._adopt(link)
                told = reopened(self.core)
                self._condition.notify_all()
            if told is not None:
                self._tell(told)
            return

    def _tell(self, told: Reconnected) -> None:
        """Calls `on_reconnect`, on a thread of its own, as the keeper has to go on."""
        on_reconnect = self._dialling.on_reconnect
        if on_reconnect is None:
            return
        name = "tensorbus-reconnected"
        try:
            threading.Thread(target=on_reconnect, args=(told,), name=name, daemon=True).start()
        except RuntimeError as error:
            log.error("connection.not_told name=%r cause=%s", self.core.name, error)
