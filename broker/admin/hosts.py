"""By which names the HTTP interface may be asked for.

A page of somebody else's, in a browser that reaches this host, can have its own name resolve to this host's address
(DNS rebinding), and then read what is answered as its own. The browser says in Host which name it meant. An address in
figures cannot be rebound, nor can `localhost`; other names are answered only if they are known to be this machine's.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ALWAYS: Final = frozenset({"localhost"})


def is_allowed(host: str, names: frozenset[str]) -> bool:
    """Whether a request with this Host header is answered.

    Args:
        host: the header, with or without a port; empty where there was none, which no browser does.
        names: of this machine, in lower case.
    """
    name = host.strip()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    name = name.lower().removesuffix(".")
    if not name or name in ALWAYS or name in names:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def names_of(address: str) -> frozenset[str]:
    """The names of this machine, and the one in the address host:port at which it listens."""
    host = address.rpartition(":")[0].strip("[]")
    return frozenset(name.lower() for name in (host, socket.gethostname()) if name)


def only(names: frozenset[str]) -> Middleware:
    """Answers requests by these names, and refuses all others with status 421."""

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if is_allowed(host, names):
            return await handler(request)
        text = f"{host[:128]!r} is not a name of this broker: ask for it by its address, or add the name to admin_names"
        return web.json_response({"error": text}, status=421)

    return check
