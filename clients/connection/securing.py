"""Which certificates a client has, at addresses where it needs them."""

from __future__ import annotations

import os
from dataclasses import replace

from broker.errors import InvalidValue
from broker.transport.addresses import Address, parse_list
from clients.connection import environment

Folder = str | os.PathLike[str]
_OPTION = "certificates"


def secured(url: str, tls: Folder | None) -> tuple[Address, ...]:
    """The addresses of brokers, those at tls:// with the folder of the certificates.

    Args:
        url: addresses with commas between.
        tls: the folder; None takes the environment's, if there is one.

    Raises:
        InvalidValue: an address is malformed; or a folder is given and nothing would be encrypted with it.
    """
    addresses = parse_list(url)
    if tls is not None and not any(address.scheme == "tls" for address in addresses):
        raise InvalidValue("tls", os.fspath(tls), f"none of the addresses is at tls://: {url}")
    folder = environment.tls() if tls is None else os.fspath(tls)
    if not folder:
        return addresses
    options = ((_OPTION, os.path.abspath(folder)),)
    return tuple(
        replace(address, options=options) if address.scheme == "tls" and not address.options else address
        for address in addresses
    )
