"""Links between the members of a group, as they are talked about, and how two members prove who they are (docs/wire.md
section 15).

Whoever dials says this, and the other one answers with an answer's seal:

    0                8            10        12            16               24        28        32          64
    +----------------+------------+---------+-------------+----------------+---------+---------+-----------+
    | magic          | version u16| lane u16| group    u32| generation  u64| from u32| to   u32| seal      |
    +----------------+------------+---------+-------------+----------------+---------+---------+-----------+

A seal is the HMAC-SHA256 (RFC 2104) of a word and the 32 bytes in front of the seal, by the generation's secret.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, NamedTuple

import msgspec

from broker.errors import InvalidValue
from broker.limits import NAME_BYTES_MAX
from broker.limits_links import LINK_ADDRESS_BYTES_MAX, LINK_ADDRESSES_MAX
from broker.schedules import AUTO, LINKED

VERSION: Final = 1
MAGIC: Final = b"\x93TBLINK\n"
_WORDS: Final = struct.Struct("<8sHHIQII")
SEAL_BYTES: Final = hashlib.sha256().digest_size
HELLO_BYTES: Final = _WORDS.size + SEAL_BYTES
SECRET_BYTES: Final = 32
_DIALLED: Final = b"tensorbus link from"
_ANSWERED: Final = b"tensorbus link to"


class Reach(msgspec.Struct, omit_defaults=True):
    """JOIN: how the other members reach this one."""

    version: int
    addresses: list[str]
    """Each `host:port`, the host an IP address in figures; one of version 6 in brackets."""
    secret: bytes
    """A random one, for this JOIN alone."""
    host: str = ""
    """The same for all processes that are on one host."""
    schedule: str = AUTO
    """What the application asks for."""


class Peer(msgspec.Struct):
    """JOINED and CHANGED: a member that is to be linked."""

    rank: int
    addresses: list[str]
    host: str


class Decision(msgspec.Struct, omit_defaults=True):
    """LINKS from the broker: by which schedule a generation's operations go."""

    schedule: str
    cause: str = ""
    report_ms: int = 0
    """How often a member may say what it is at, by OPERATIONS, in milliseconds; 0 is never."""


class Trouble(msgspec.Struct, omit_defaults=True):
    """LINKS from a member: what is wrong."""

    rank: int = -1
    """The member that it cannot reach; -1 when that is not known, or the trouble is its own."""
    cause: str = ""


class LinkState:
    """LINKS from a member, `count`: how far it is."""

    READY: Final = 1
    FAILED: Final = 2
    BROKEN: Final = 3


class Greeting(NamedTuple):
    """Who dials whom."""

    group: int
    generation: int
    source: int
    target: int
    lane: int


def address_of(text: str) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
        InvalidValue: it is none.
    """
    host, _, port = text.rpartition(":")
    try:
        host = str(ip_address(host.removeprefix("[").removesuffix("]")))
        if len(text) > LINK_ADDRESS_BYTES_MAX or not 0 < int(port) < 1 << 16:
            raise ValueError
    except ValueError as error:
        raise InvalidValue("address of a link", text[:LINK_ADDRESS_BYTES_MAX], "is not figures:port") from error
    return host, int(port)


def address_text(host: str, port: int) -> str:
    """The way back from `address_of`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_reach(reach: Reach) -> None:
    """Refuses what no member can be reached by.

    Raises:
        InvalidValue: it cannot be.
    """
    if not 1 <= len(reach.addresses) <= LINK_ADDRESSES_MAX:
        raise InvalidValue("addresses of a link", len(reach.addresses), f"must be 1 to {LINK_ADDRESSES_MAX}")
    for address in reach.addresses:
        address_of(address)
    if len(reach.secret) != SECRET_BYTES or len(reach.host) > NAME_BYTES_MAX:
        raise InvalidValue(
            "secret of bytes", len(reach.secret), f"must have {SECRET_BYTES}, and the host's name be short"
        )
    if reach.schedule != AUTO and reach.schedule not in LINKED:
        raise InvalidValue("schedule", reach.schedule[:NAME_BYTES_MAX], f"is none of {', '.join(LINKED)}")


def host_name(rank: int, host: str) -> str:
    """What is the same for all members of one host; who does not say where it is, is on a host of its own."""
    return host or f"of rank {rank}"


def generation_secret(parts: Iterable[bytes], group: int, generation: int) -> bytes:
    """The secret of a generation, made of those of its members."""
    made = hashlib.sha256(struct.pack("<QQ", group, generation))
    for part in parts:
        made.update(part)
    return made.digest()


def greet(greeting: Greeting, secret: bytes) -> bytes:
    """What the one who dials says."""
    words = _pack(greeting)
    return words + _seal(secret, _DIALLED, words)


def answer(greeting: Greeting, secret: bytes) -> bytes:
    """What the other one answers."""
    return _seal(secret, _ANSWERED, _pack(greeting))


def read_greeting(data: bytes) -> Greeting | None:
    """Who says that he dials, of HELLO_BYTES; None when these bytes are something else. Nothing of it is proved."""
    magic, version, lane, group, generation, source, target = _WORDS.unpack(data[: _WORDS.size])
    if magic != MAGIC or version != VERSION:
        return None
    return Greeting(group, generation, source, target, lane)


def is_greeting(data: bytes, greeting: Greeting, secret: bytes) -> bool:
    """Whether somebody who knows the secret has said this."""
    return hmac.compare_digest(data, greet(greeting, secret))


def is_answer(data: bytes, greeting: Greeting, secret: bytes) -> bool:
    """Whether somebody who knows the secret has answered this."""
    return hmac.compare_digest(data, answer(greeting, secret))


def _pack(greeting: Greeting) -> bytes:
    return _WORDS.pack(
        MAGIC, VERSION, greeting.lane, greeting.group, greeting.generation, greeting.source, greeting.target
    )


def _seal(secret: bytes, word: bytes, words: bytes) -> bytes:
    return hmac.digest(secret, word + words, "sha256")
