"""Dialling and listening."""

from __future__ import annotations

import logging
import socket
import ssl
from dataclasses import replace
from pathlib import Path

from broker.errors import ConnectError, InvalidValue, ListenError
from broker.limits import TLS_OPENING_MAX
from broker.transport.addresses import WORKER, Address
from broker.transport.base import Connection, Listener, Transport
from broker.transport.sockets import SocketListener, connect_error, listen_error
from broker.transport.tcp import address_text, dialled_socket, listening_socket, look_up_own, prepared
from broker.transport.tls.connection import TlsConnection
from broker.transport.tls.contexts import FILES, check_successor, dialler_context, expired, listener_context
from broker.transport.tls.hello import protocol_of

log = logging.getLogger(__name__)

CERTIFICATES = "certificates"
"""The option of an address that names the folder."""


class TlsTransport(Transport):
    """Streams over TLS 1.3 over TCP."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        return "tls"

    def connect(self, address: Address, timeout_s: float) -> Connection:
        worker = dict(address.options).get(WORKER, "")
        address = replace(address, options=tuple(option for option in address.options if option[0] != WORKER))
        try:
            # Anew each time: the files may have been replaced.
            context = dialler_context(_folder(address))
        except InvalidValue as error:
            raise ConnectError(str(address), str(error)) from error
        if worker:
            context.set_alpn_protocols([protocol_of(int(worker))])
        sock, target = dialled_socket(address, timeout_s)
        peer = str(replace(address, host=target[0], port=target[1]))
        try:
            return TlsConnection(sock, context, address.host, address_text("tls", sock.getsockname()), peer)
        except OSError as error:
            sock.close()
            raise connect_error(address, error, timeout_s) from error
        except ValueError as error:
            sock.close()
            raise ConnectError(str(address), f"no certificate can be for this host: {error}") from error

    def listen(self, address: Address) -> Listener:
        if not _folder(address):
            raise ListenError(
                str(address), "a certificate is needed to listen there; name its folder (--certificates), made by "
                "tensorbus certs init",
            )  # fmt: skip
        try:
            context = listener_context(_folder(address))
        except InvalidValue as error:
            raise ListenError(str(address), str(error)) from error
        problem = expired(context, _folder(address))
        if problem:
            # Other addresses may still be of use.
            log.error("listener.certificate_expired address=%s cause=%s", address, problem)
        try:
            sock = listening_socket(*look_up_own(address))
            return TlsListener(sock, replace(address, port=sock.getsockname()[1]), context)
        except OSError as error:
            raise listen_error(address, error) from error


class TlsListener(SocketListener):
    """Accepts connections over TLS; those whose handshake is under way are bounded in number."""

    __slots__ = ("_context", "_opening")

    def __init__(self, sock: socket.socket, address: Address, context: ssl.SSLContext) -> None:
        super().__init__(sock, address)
        self._context = context
        self._opening: dict[TlsConnection, None] = {}

    @property
    def files(self) -> list[Path]:
        return [Path(_folder(self.address)) / name for name in FILES]

    def reload(self) -> None:
        folder = _folder(self.address)
        context = listener_context(folder)
        check_successor(self._context, context, folder)
        self._context = context

    def inherited(self) -> None:
        # Whoever has read the files may have done so long ago.
        try:
            self.reload()
        except InvalidValue as error:
            log.error("credentials.kept what=%r cause=%s", f"certificates at {self.address}", error)

    def connection(self, sock: socket.socket, peer: object) -> Connection:
        assert isinstance(peer, tuple)
        try:
            connection = TlsConnection(
                prepared(sock), self._context, None, str(self.address), address_text("tls", (peer[0], peer[1])),
                lambda opened: self._opening.pop(opened, None),
            )  # fmt: skip
        except OSError as error:
            sock.close()
            raise self._failure(error) from error
        self._opening[connection] = None
        if len(self._opening) > TLS_OPENING_MAX:
            oldest = next(iter(self._opening))
            del self._opening[oldest]
            oldest.give_up(f"more than {TLS_OPENING_MAX} connections were being opened, and this was the oldest")
        return connection


def _folder(address: Address) -> str:
    return dict(address.options).get(CERTIFICATES, "")
