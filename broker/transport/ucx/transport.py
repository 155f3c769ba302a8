"""Dialling and listening: as for tcp, for what is dialled is the link."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

from broker.errors import ConnectError, ListenError
from broker.transport.addresses import Address
from broker.transport.base import Connection, Listener, Transport
from broker.transport.sockets import SocketListener, connect_error, listen_error
from broker.transport.tcp import address_text, dialled_socket, listening_socket, look_up_own, prepared
from broker.transport.ucx.carriers import CarriersFailed, carriers
from broker.transport.ucx.connection import UcxConnection


class UcxTransport(Transport):
    """Streams over UCX."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        return "ucx"

    def connect(self, address: Address, timeout_s: float) -> Connection:
        deadline_s = time.monotonic() + timeout_s
        sock, target = dialled_socket(address, timeout_s)
        try:
            carriers.start(deadline_s - time.monotonic())
            ends = address_text("ucx", sock.getsockname()), address_text("ucx", target)
            return UcxConnection(sock, *ends, greets=True)
        except CarriersFailed as error:
            sock.close()
            raise ConnectError(str(address), str(error)) from error
        except OSError as error:
            sock.close()
            raise connect_error(address, error, timeout_s) from error

    def listen(self, address: Address) -> Listener:
        try:
            carriers.start()
            sock = listening_socket(*look_up_own(address))
            return UcxListener(sock, replace(address, port=sock.getsockname()[1]))
        except CarriersFailed as error:
            raise ListenError(str(address), str(error)) from error
        except OSError as error:
            raise listen_error(address, error) from error

    def finish(self) -> None:
        carriers.finish()


class UcxListener(SocketListener):
    """Accepts links. A stranger at one is found out when it speaks."""

    __slots__ = ()

    def connection(self, sock: socket.socket, peer: object) -> Connection:
        assert isinstance(peer, tuple)
        try:
            peer_address = address_text("ucx", (peer[0], peer[1]))
            return UcxConnection(prepared(sock), str(self.address), peer_address, greets=False)
        except OSError as error:
            sock.close()
            raise self._failure(error) from error
