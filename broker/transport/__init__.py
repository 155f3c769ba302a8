"""Transports: how bytes get from one process to another. They know no frames.

`connect` and `listen` choose the transport by the address's scheme; base.py is the contract that all of them keep.
"""

from broker.transport.addresses import Address, parse, parse_list
from broker.transport.base import Connection, Listener, Transport
from broker.transport.registry import connect, listen, register, transport_for

__all__ = [
    "Address",
    "Connection",
    "Listener",
    "Transport",
    "connect",
    "listen",
    "parse",
    "parse_list",
    "register",
    "transport_for",
]
