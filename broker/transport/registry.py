"""Which transport serves which scheme. One that needs an optional library is imported when an address asks for it."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from importlib import import_module
from typing import Final

from broker.errors import InvalidValue
from broker.transport.addresses import Address, parse
from broker.transport.base import Connection, Listener, Transport

BUILT_IN: Final[Mapping[str, str]] = {
    "tcp": "broker.transport.tcp",
    "tls": "broker.transport.tls",
    "unix": "broker.transport.unix",
    "inproc": "broker.transport.inproc",
    "zmq+tcp": "broker.transport.zeromq",
    "zmq+ipc": "broker.transport.zeromq",
    "ucx": "broker.transport.ucx",
}
"""The module of each scheme; importing it registers its transports."""

_transports: Final[dict[str, Transport]] = {}


def register(transport: Transport) -> None:
    """Makes a transport serve its scheme from now on, in place of one that did before."""
    _transports[transport.scheme] = transport


def transport_for(scheme: str) -> Transport:
    """The transport that serves a scheme, loaded if it is the first use.

    Raises:
        InvalidValue: nobody knows the scheme, or a library that its transport needs is not installed.
    """
    if scheme not in _transports and scheme in BUILT_IN:
        _load(scheme)
    transport = _transports.get(scheme)
    if transport is None:
        known = ", ".join(dict.fromkeys([*BUILT_IN, *_transports]))
        raise InvalidValue("scheme", scheme, f"no transport serves it; known ones are {known}")
    return transport


def connect(address: str | Address, timeout_s: float) -> Connection:
    """Dials an address with the transport of its scheme; see `Transport.connect`."""
    address = _parsed(address)
    return transport_for(address.scheme).connect(address, timeout_s)


def listen(address: str | Address) -> Listener:
    """Listens at an address with the transport of its scheme; see `Transport.listen`."""
    address = _parsed(address)
    return transport_for(address.scheme).listen(address)


@atexit.register
def _finish() -> None:
    """Runs after clients were closed at the process's end, because their handlers were registered later."""
    for transport in _transports.values():
        transport.finish()


def _parsed(address: str | Address) -> Address:
    return parse(address) if isinstance(address, str) else address


def _load(scheme: str) -> None:
    try:
        import_module(BUILT_IN[scheme])
    except ImportError as error:
        raise InvalidValue("scheme", scheme, f"its transport cannot be loaded here: {error}") from error
