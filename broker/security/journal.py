"""The audit log: one JSON object per line, appended to a file. This module does input and output.

{"time":"2026-03-01T12:00:00.123456+00:00","event":"denied","session":7,"identity":"trainer-3","proof":"certificate",
 "credential":"5A...","tenant":"","client":"trainer-3","peer":"tls://10.0.0.7:40112","action":"publish",
 "target":"control/stop","detail":"..."}
"""

from __future__ import annotations

import errno
import io
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from broker.errors import ConfigError
from broker.limits import AUDIT_EVENTS_PER_S_MAX, AUDIT_TEXT_MAX
from broker.masking import masked
from broker.security.audit import AuditEvent

log = logging.getLogger(__name__)


class AuditLog:
    """A file to which events are appended. It is open for its owner alone."""

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        """Opens it.

        Args:
            path: of the file; it is made if it does not exist.
            clock: seconds since 1970.

        Raises:
            ConfigError: it cannot be written.
        """
        self._path = Path(path)
        self._clock = clock
        self._file = self._opened()
        self._second = 0
        self._written = 0
        self._left_out = 0
        self._failed = False

    def _opened(self) -> io.FileIO:
        try:
            # The mode of a file that exists is its owner's business.
            self._path.touch(mode=0o600)
            return io.FileIO(self._path, "ab", opener=_open_at_once)
        except OSError as error:
            raise ConfigError("setting audit", str(self._path), f"cannot be written: {error.strerror}") from error

    def reopen(self) -> None:
        """Goes on in a new file, if the old one was moved away.

        Raises:
            ConfigError: it cannot be written; the old one is gone on with.
        """
        file, self._file = self._file, self._opened()
        file.close()

    def record(self, event: AuditEvent) -> None:
        """Writes an event, unless there were too many in this second."""
        now_s = self._clock()
        if int(now_s) != self._second:
            self._second, self._written = int(now_s), 0
            left_out, self._left_out = self._left_out, 0
            if left_out:
                self._write({"time": _iso(now_s), "event": "left out", "count": left_out})
        if self._written >= AUDIT_EVENTS_PER_S_MAX:
            self._left_out += 1
            return
        self._written += 1
        identity = event.identity
        self._write(
            {
                "time": _iso(now_s),
                "event": event.kind.value,
                "session": event.session,
                "identity": identity.name,
                "proof": identity.proof,
                "credential": identity.credential,
                "tenant": identity.tenant,
                "client": _short(event.name),
                "peer": event.peer,
                "action": event.action,
                "target": _short(event.target),
                "detail": _short(event.detail),
            }
        )

    def _write(self, line: dict[str, object]) -> None:
        try:
            # One write for a line: two brokers may append to one file.
            if self._file.write(masked(msgspec.json.encode(line).decode()).encode() + b"\n") is None:
                raise BlockingIOError(errno.EAGAIN, "nobody reads that pipe fast enough")
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.error("audit.failed file=%s cause=%s", self._path, error.strerror)
            self._failed = True

    def close(self) -> None:
        """Ends it; a second call does nothing."""
        self._file.close()

    def __repr__(self) -> str:
        return f"<AuditLog {self._path}>"


def _short(text: str) -> str:
    """A text as far as it is written: strangers say some of them."""
    # Masked first: of a token that is cut through the rest might not look like one.
    return text if len(text) <= AUDIT_TEXT_MAX else f"{masked(text)[:AUDIT_TEXT_MAX]}..."


def _open_at_once(path: str, flags: int) -> int:
    """Waits for nobody: a pipe that nobody reads, or reads too slowly, is an error, and the daemon's loop goes on."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _iso(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).isoformat()
