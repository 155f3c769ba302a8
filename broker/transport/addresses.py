"""Addresses: `tcp://host:port`, `unix:///path`, `inproc://name` and the schemes that look like one of them.

Some may have options behind a question mark: `zmq+tcp://host:port?curve=/path/of/keys`,
`tls://host:port?certificates=/folder`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from broker.errors import InvalidValue
from broker.limits import NAME_BYTES_MAX, SOCKET_PATH_BYTES_MAX

PORT_MAX: Final = 65_535
PORT_DIGITS_MAX: Final = 10
"""With zeros in front; of thousands Python makes no number at all."""
WORKER: Final = "worker"
"""An option that no text has: see `for_worker`."""

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_INPROC_NAME: Final = re.compile(r"[^\s,\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker listens; `str()` gives the text that `parse` takes.

    Attributes:
        scheme: the transport, in lower case.
        host: name or number, IPv6 without brackets; empty where the scheme has none.
        port: 0 to 65535, 0 for "any free one" when listening.
        path: of the socket file, absolute; empty where the scheme has none.
        name: within this process; empty where the scheme has none.
        options: names and values, in the order of the text.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    name: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        options = "?" + "&".join(f"{name}={value}" for name, value in self.options) if self.options else ""
        if not self.host:
            return f"{self.scheme}://{self.path or self.name}{options}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{options}"


def parse(text: str) -> Address:
    """Reads one address.

    Raises:
        InvalidValue: the text is not an address; the error says what is wrong with it.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise InvalidValue("address", text, "no scheme; write one like tcp://host:port or unix:///path")
    scheme = scheme.lower()
    parser = _PARSERS.get(scheme)
    if parser is None:
        raise InvalidValue("address", text, f"unknown scheme {scheme!r}; known ones are {', '.join(_PARSERS)}")
    return parser(text, scheme, rest)


def for_worker(address: Address, worker: int) -> Address:
    """An address with the worker that is meant there, for a transport that has to say so before anything else can.

    The others have it from the first thing that is said over them. Whoever says nothing means the first worker.
    """
    return (
        replace(address, options=(*address.options, (WORKER, str(worker))))
        if worker and address.scheme == "tls"
        else address
    )


def parse_list(text: str) -> tuple[Address, ...]:
    """Reads addresses separated by commas, with or without spaces around them; a path with a comma cannot stand here.

    Raises:
        InvalidValue: one of them is not an address, or is empty.
    """
    return tuple(parse(part.strip()) for part in text.split(","))


def _parse_host_port(text: str, scheme: str, rest: str) -> Address:
    host, separator, port = rest.rpartition(":")
    if not separator or port.endswith("]"):
        raise InvalidValue("address", text, f"no port; write {scheme}://host:port")
    if not (port.isascii() and port.isdigit() and len(port) <= PORT_DIGITS_MAX and int(port) <= PORT_MAX):
        raise InvalidValue("address", text, f"the port must be a number from 0 to {PORT_MAX}, not {port!r}")
    return Address(scheme, host=_parse_host(text, scheme, host), port=int(port))


def _parse_host(text: str, scheme: str, host: str) -> str:
    if not host:
        raise InvalidValue("address", text, f"no host; to listen on every interface write {scheme}://0.0.0.0:port")
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(IPv6Address(host[1:-1]))
        except AddressValueError as error:
            raise InvalidValue("address", text, f"{host} is not an IPv6 address: {error}") from error
    if ":" in host:
        raise InvalidValue("address", text, f"write an IPv6 address in brackets: {scheme}://[::1]:port")
    if not _HOST_NAME.fullmatch(host):
        raise InvalidValue("address", text, f"{host!r} is not a host name; letters, digits, '.', '-' and '_' are")
    return host


def _parse_path(text: str, scheme: str, path: str) -> Address:
    if not path:
        raise InvalidValue("address", text, f"no path; write {scheme}:///path/of/socket")
    if not path.startswith("/"):
        raise InvalidValue("address", text, f"the path must be absolute: three slashes, as in {scheme}:///{path}")
    if "\0" in path:
        raise InvalidValue("address", text, "the path holds a NUL")
    path_bytes = len(os.fsencode(path))
    if path_bytes > SOCKET_PATH_BYTES_MAX:
        problem = f"the path has {path_bytes} bytes, a socket's may have {SOCKET_PATH_BYTES_MAX}; choose a shorter one"
        raise InvalidValue("address", text, problem)
    return Address(scheme, path=path)


def _parse_name(text: str, scheme: str, name: str) -> Address:
    if not _INPROC_NAME.fullmatch(name):
        raise InvalidValue("address", text, f"write {scheme}://name, the name without spaces, commas and controls")
    name_bytes = len(name.encode(errors="surrogateescape"))
    if name_bytes > NAME_BYTES_MAX:
        raise InvalidValue("address", text, f"the name has {name_bytes} bytes, the limit is {NAME_BYTES_MAX}")
    return Address(scheme, name=name)


def _with_options(
    parser: Callable[[str, str, str], Address], known: Sequence[str]
) -> Callable[[str, str, str], Address]:
    """A parser of addresses that may end in options."""

    def parse_both(text: str, scheme: str, rest: str) -> Address:
        place, separator, options = rest.partition("?")
        address = parser(text, scheme, place)
        return replace(address, options=_parse_options(text, options, known)) if separator else address

    return parse_both


def _parse_options(text: str, options: str, known: Sequence[str]) -> tuple[tuple[str, str], ...]:
    parsed: dict[str, str] = {}
    for option in options.split("&"):
        name, _, value = option.partition("=")
        if name not in known:
            raise InvalidValue("address", text, f"unknown option {name!r}; known ones are {', '.join(known)}")
        if not value.startswith("/"):
            raise InvalidValue("address", text, f"option {name} takes an absolute path, not {value!r}")
        if name in parsed:
            raise InvalidValue("address", text, f"option {name} stands there twice")
        parsed[name] = value
    return tuple(parsed.items())


_CURVE: Final = ("curve", "key")
"""Files with keys: see broker/transport/zeromq/curve.py."""
_TLS: Final = ("certificates",)
"""A folder: see broker/transport/tls/contexts.py."""

_PARSERS: Final[Mapping[str, Callable[[str, str, str], Address]]] = {
    "tcp": _parse_host_port,
    "tls": _with_options(_parse_host_port, _TLS),
    "unix": _parse_path,
    "inproc": _parse_name,
    "zmq+tcp": _with_options(_parse_host_port, _CURVE),
    "zmq+ipc": _with_options(_parse_path, _CURVE),
    "ucx": _parse_host_port,
    "auto": _parse_host_port,
}
"""Of each scheme; by `auto` a client chooses among the others."""
