"""Dialling and listening."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from typing import Final

import zmq

from broker.errors import ConnectError, ListenError
from broker.transport.addresses import Address
from broker.transport.base import Connection, Listener, Transport
from broker.transport.sockets import connect_error, listen_error
from broker.transport.tcp import listening_socket, look_up, look_up_own
from broker.transport.unix import SocketFile, claimed_socket
from broker.transport.zeromq import sockets
from broker.transport.zeromq.curve import secure_listener
from broker.transport.zeromq.dealer import close_all, dial
from broker.transport.zeromq.hub import Hub, RouterListener

_ATTEMPT_S_MIN: Final = 0.05


class ZeroMqTransport(Transport):
    """Streams over ZeroMQ, by one scheme of it."""

    __slots__ = ("_scheme",)

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme

    @property
    def scheme(self) -> str:
        return self._scheme

    def connect(self, address: Address, timeout_s: float) -> Connection:
        deadline_s = time.monotonic() + timeout_s
        targets = [address]
        if not address.path:
            try:
                targets = [replace(address, host=at[0], port=at[1]) for _, at in look_up(address)]
            except OSError as error:
                raise connect_error(address, error, timeout_s) from error
        reasons: dict[str, None] = {}
        for tried, target in enumerate(targets):
            attempt_s = max((deadline_s - time.monotonic()) / (len(targets) - tried), _ATTEMPT_S_MIN)
            try:
                return dial(address, target, attempt_s)
            except ConnectError as error:
                reasons[error.reason or _why(target, attempt_s)] = None
        raise ConnectError(str(address), "; ".join(reasons))

    def listen(self, address: Address) -> Listener:
        try:
            if address.path:
                ready, bound = claimed_socket(address), address
            else:
                ready = listening_socket(*look_up_own(address))
                bound = replace(address, port=ready.getsockname()[1])
        except OSError as error:
            raise listen_error(address, error) from error
        file = SocketFile(address.path) if address.path else None
        try:
            return ZeroMqListener(_hub(ready, bound), bound, file)
        except BaseException as error:
            if file is not None:
                file.remove()
            if isinstance(error, zmq.ZMQError):
                raise ListenError(str(address), str(error)) from error
            if isinstance(error, OSError):
                raise listen_error(address, error) from error
            raise

    def finish(self) -> None:
        close_all()
        sockets.finish()


class ZeroMqListener(RouterListener):
    """Accepts connections, and removes its socket file, if it has one, when it closes."""

    __slots__ = ("_file",)

    def __init__(self, hub: Hub, address: Address, file: SocketFile | None) -> None:
        super().__init__(hub, address)
        self._file = file

    def close(self) -> None:
        if self._file is not None and self.fileno() >= 0:
            self._file.remove()
        super().close()


def _hub(ready: socket.socket, address: Address) -> Hub:
    """A hub over a socket that listens already, and that it owns from here on.

    ZeroMQ would make one itself, but take another daemon's socket file away, let everybody in by it, and say of what
    failed no more than a number.
    """
    with ready:
        ready.setblocking(False)
        router = sockets.make_socket(zmq.ROUTER, address)
        try:
            router.set(zmq.ROUTER_MANDATORY, 1)
            secure_listener(router, address)
            router.set(zmq.USE_FD, ready.fileno())
            router.bind(sockets.endpoint_of(address))
            ready.detach()
            return Hub(router, address)
        except BaseException:
            router.close(0)
            raise


def _why(target: Address, timeout_s: float) -> str:
    """What a link meets that ZeroMQ could not make: it does not say itself, so it is tried once more without it."""
    family = socket.AF_UNIX if target.path else socket.AF_INET6 if ":" in target.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(min(timeout_s, 1.0))
            sock.connect(target.path or (target.host, target.port))
    except OSError as error:
        return connect_error(target, error, timeout_s).reason
    return "the link was refused; is the broker just starting?"
