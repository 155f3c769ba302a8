"""At the door of the server: where it may listen, who is let in there and as whom, and who is not any more.

On loopback and on sockets of this host nothing is asked for that the kernel does not say itself. Anywhere else somebody
has to prove who they are, unless the configuration is `insecure`, which is said in the log again and again.

Certificates, revocations and tokens are read again on SIGHUP and when their files change. Sessions live on through
that, but for those whose certificate or token is revoked. What cannot be used is left as it was, and the log says so.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from broker.config import Config
from broker.errors import BrokerError, InvalidValue, ListenError, PermissionDenied
from broker.limits import REFUSAL_LOG_INTERVAL_S
from broker.protocol.bodies import Hello
from broker.security import admission
from broker.security.audit import Audit, AuditEvent, AuditKind, unrecorded
from broker.security.identity import ANYBODY, Identity
from broker.security.journal import AuditLog
from broker.security.revocations import revoked_serials
from broker.security.tokens import read_tokens
from broker.state.records import SessionRecord
from broker.transport.addresses import Address, parse
from broker.transport.base import Connection, Listener
from broker.transport.proofs import Certificate
from broker.transport.tcp import is_loopback
from broker.transport.tls.contexts import FILES, REVOKED

log = logging.getLogger(__name__)

LOOK_NS: Final = 1_000_000_000
"""Between two looks at the files. A change is taken over at the second look that finds it, when all files are there."""
_EVERYBODY: Final = 0o666
_NETWORKED: Final = ("tcp", "tls", "zmq+tcp", "ucx")
_CERTIFICATES: Final = "certificates"


class Admission:
    """Who is let in to one server.

    Attributes:
        audit: where it is recorded.
    """

    def __init__(self, config: Config) -> None:
        """Reads what identities are proven by.

        Raises:
            ConfigError, InvalidValue: the users, the file of tokens or the audit log cannot be used.
        """
        self._config = config
        self._users = admission.read_users(config.users, os.getuid())
        self._tokens_file = Path(config.tokens) if config.tokens else None
        self._tokens = read_tokens(self._tokens_file) if self._tokens_file is not None else None
        self._log = AuditLog(config.audit) if config.audit else None
        self.audit: Audit = unrecorded if self._log is None else self._log.record
        self._listeners: Sequence[Listener] = ()
        self._local: frozenset[Listener] = frozenset()
        self._revoked: frozenset[str] = frozenset()
        self._also: list[tuple[str, Callable[[], None]]] = []
        self._looked_ns = 0
        self._seen = self._loaded = self._fingerprint()
        self._warned_s = 0.0
        self._unwarned = 0

    # Where to listen.

    def places(self, addresses: Sequence[str]) -> list[Address]:
        """Where to listen, with the certificates where they are needed.

        Raises:
            InvalidValue: an address is malformed.
            ListenError: strangers could get in at an address, and nobody has said that they may.
        """
        found = []
        for text in addresses:
            address = parse(text)
            if address.scheme == "tls" and not address.options and self._config.certificates:
                folder = os.path.abspath(self._config.certificates)
                address = replace(address, options=((_CERTIFICATES, folder),))
            if not is_local(address):
                self._check(address)
            found.append(address)
        return found

    def _check(self, address: Address) -> None:
        if address.scheme == "ucx" and not self._config.insecure_fabric:
            raise ListenError(
                str(address), "UCX encrypts nothing, and ports of its own take whatever reaches them: anybody on that "
                "network could read along, or end connections. Listen at tls://, or at ucx:// on loopback; where the "
                "whole fabric is yours, say --insecure-fabric",
            )  # fmt: skip
        if address.scheme != "tls":
            if self._tokens is None and not self._config.insecure:
                raise ListenError(
                    str(address), "strangers could get in there: it is not on loopback, and nobody would have to prove "
                    "who they are. Listen at tls:// (tensorbus certs init makes certificates, --certificates names "
                    "them), or take tokens (--tokens FILE); where you trust the whole network, say --insecure",
                )  # fmt: skip
            if self._tokens is not None and not address.options:
                log.warning(
                    "listener.in_the_clear address=%s advice=%r", address,
                    "whoever reads along learns the tokens; listen at tls:// instead",
                )  # fmt: skip
        if self._config.insecure:
            log.warning(
                "listener.insecure address=%s advice=%r", address,
                "anybody who reaches it gets in, because of --insecure; tensorbus certs init makes certificates",
            )  # fmt: skip

    def listening(self, listeners: Sequence[Listener]) -> None:
        """The server listens."""
        self._listeners = listeners
        self._local = frozenset(listener for listener in listeners if is_local(listener.address))
        if self._config.users:
            for listener in listeners:
                if listener.address.scheme == "unix":
                    # Who comes is asked of the kernel.
                    os.chmod(listener.address.path, _EVERYBODY)
        self._revoked = self._read_revoked()
        self._seen = self._loaded = self._fingerprint()

    # Who comes.

    def admit(self, listener: Listener, connection: Connection, record: SessionRecord, hello: Hello) -> None:
        """Says in the record who has said hello.

        Raises:
            PermissionDenied: nobody who is let in; it stands in the audit log.
        """
        try:
            strangers = listener in self._local or self._config.insecure
            proven = self._proven(listener, connection, hello)
            record.identity = self._admitted(proven, hello.token, strangers=strangers)
        except PermissionDenied as error:
            self.refused(record, hello.name, str(error))
            raise
        if record.identity.proof == "none" and listener not in self._local:
            self._warn(record, hello.name)

    def _proven(self, listener: Listener, connection: Connection, hello: Hello) -> Identity:
        """What the connection proves."""
        if connection.peer_certificate is not None:
            return _identity_of(connection.peer_certificate)
        user = connection.peer_user
        if user is None and listener.address.scheme == "zmq+ipc":
            # ZeroMQ does not say who it is; the file lets only its owner in.
            user = os.getuid()
        if user is None:
            return ANYBODY
        if hello.token and self._tokens is not None and user not in self._users:
            return ANYBODY
        return admission.identity_of_user(self._users, user)

    def visitor(self, certificate: Certificate | None, token: str, *, strangers: bool) -> Identity:
        """Who asks for something without a session.

        Raises:
            PermissionDenied: somebody who has to prove it, and does not.
        """
        proven = ANYBODY if certificate is None else _identity_of(certificate)
        return self._admitted(proven, token, strangers=strangers)

    def _admitted(self, proven: Identity, token: str, *, strangers: bool) -> Identity:
        identity = admission.admit(proven, token, self._tokens, time.time(), strangers=strangers)
        cause = self.withdrawn(identity)
        if cause:
            raise PermissionDenied(cause)
        return identity

    def _warn(self, record: SessionRecord, name: str) -> None:
        now_s = time.monotonic()
        if self._warned_s and now_s - self._warned_s < REFUSAL_LOG_INTERVAL_S:
            self._unwarned += 1
            return
        log.warning(
            "session.insecure id=%d name=%r peer=%s others=%d advice=%r", record.id, name, record.peer, self._unwarned,
            "it has proven nothing, and was let in by --insecure",
        )  # fmt: skip
        self._warned_s, self._unwarned = now_s, 0

    def opened(self, record: SessionRecord) -> None:
        """A session is open."""
        self.audit(AuditEvent(AuditKind.CONNECTED, record.identity, record.peer, record.id, record.name))

    def refused(self, record: SessionRecord, name: str, cause: str) -> None:
        """Somebody was not let in."""
        self.audit(AuditEvent(AuditKind.REFUSED, record.identity, record.peer, record.id, name, detail=cause))

    def closed(self, record: SessionRecord) -> None:
        """A session has ended."""
        cause = str(record.session.failure)
        event = AuditEvent(AuditKind.DISCONNECTED, record.identity, record.peer, record.id, record.name, detail=cause)
        self.audit(event)

    # What changes.

    def changed(self, now_ns: int) -> bool:
        """Whether files have changed, and are at rest again; looks about once a second."""
        if now_ns - self._looked_ns < LOOK_NS:
            return False
        self._looked_ns = now_ns
        seen, self._seen = self._seen, self._fingerprint()
        return self._seen == seen != self._loaded

    def reload(self) -> None:
        """Reads certificates, revocations and tokens again. Each that cannot be used stays as it was."""
        self._loaded = self._seen = self._fingerprint()
        for listener in self._listeners:
            if listener.files:
                self._reload(f"certificates at {listener.address}", listener.reload)
        for what, read in self._also:
            self._reload(what, read)
        if self._tokens_file is not None:
            self._reload(f"tokens in {self._tokens_file}", self._read_tokens)
        if self._log is not None:
            self._reload("audit log", self._log.reopen)
        self._revoked = self._read_revoked()

    def also(self, what: str, read: Callable[[], None]) -> None:
        """Something else that is to be read again with the rest; `read` raises InvalidValue when it cannot."""
        self._also.append((what, read))

    def _reload(self, what: str, read: Callable[[], None]) -> None:
        try:
            read()
        except BrokerError as error:
            log.error("credentials.kept what=%r cause=%s", what, error)
            self.audit(AuditEvent(AuditKind.CHANGED, action="reload failed", target=what, detail=str(error)))
            return
        log.info("credentials.reloaded what=%r", what)
        self.audit(AuditEvent(AuditKind.CHANGED, action="reload", target=what))

    def _read_tokens(self) -> None:
        assert self._tokens_file is not None
        self._tokens = read_tokens(self._tokens_file)

    def _read_revoked(self) -> frozenset[str]:
        """The serial numbers of revoked certificates, of all listeners together; the old ones where that fails."""
        found: set[str] = set()
        for file in self._files():
            if file.name == REVOKED and file.exists():
                try:
                    found |= revoked_serials(file)
                except InvalidValue as error:
                    log.warning("revocations.unread file=%s cause=%s", file, error)
                    found |= self._revoked
        return frozenset(found)

    def withdrawn(self, identity: Identity) -> str:
        """Why a session of this identity has to end, in words; empty when it may stay."""
        advice = "; ask for a new one"
        if identity.proof == "certificate" and identity.credential in self._revoked:
            return f"the certificate of {identity.name!r} was revoked{advice}"
        if identity.proof == "token" and self._tokens is not None and not self._tokens.is_valid(identity.credential):
            return f"token {identity.credential} of {identity.name!r} was revoked{advice}"
        return ""

    def _fingerprint(self) -> tuple[object, ...]:
        files = self._files() if self._tokens_file is None else [*self._files(), self._tokens_file]
        return tuple(_stamp(file) for file in files)

    def _files(self) -> list[Path]:
        """Of all certificates."""
        own = [Path(self._config.certificates) / name for name in FILES] if self._config.certificates else []
        return list(dict.fromkeys([*own, *(file for listener in self._listeners for file in listener.files)]))

    def close(self) -> None:
        """The server has ended."""
        if self._log is not None:
            self._log.close()

    def __repr__(self) -> str:
        return f"<Admission users={len(self._users)} tokens={self._tokens!r} revoked={len(self._revoked)}>"


def _identity_of(certificate: Certificate) -> Identity:
    return Identity(certificate.name, certificate.units, certificate.organization, "certificate", certificate.serial)


def dialled(address: Address, config: Config) -> Address:
    """An address as clients use it: they have certificates of their own."""
    return replace(address, options=()) if address.scheme == "tls" and config.certificates else address


def is_local(address: Address) -> bool:
    """Whether only processes of this host reach an address.

    Raises:
        ListenError: its host cannot be looked up.
    """
    return address.scheme not in _NETWORKED or is_loopback(address)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
