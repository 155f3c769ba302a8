"""All contestants, in the order of the tables. The first is the reference, the floor under the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.contestant import Contestant
from bench.limit import Limit
from bench.peers.gloo import Gloo
from bench.peers.iceoryx2 import Iceoryx2
from bench.peers.mosquitto import Mosquitto
from bench.peers.nats import Nats
from bench.peers.openmpi import Openmpi
from bench.peers.rabbitmq import Rabbitmq
from bench.peers.redis import Redis
from bench.peers.ucxx import Ucxx
from bench.peers.zenoh import Zenoh
from bench.peers.zeromq import Zeromq
from bench.relay import Relay
from bench.tensorbus import QUEUE_BYTES, Tensorbus, TensorbusOverZeromq, TensorbusShared

ALL: Final[tuple[Contestant, ...]] = (
    Relay(),
    Tensorbus(),
    TensorbusOverZeromq(),
    Zeromq(),
    Nats(),
    Redis(),
    Mosquitto(),
    Rabbitmq(),
    Zenoh(),
    Zenoh(shared=True),
    Iceoryx2(),
)
WITH_UCX: Final[tuple[Contestant, ...]] = (*ALL, Ucxx(), Ucxx(handled=False))
"""Everybody, and bare UCXX, which takes part where tensorbus speaks UCX too."""
COLLECTIVE: Final[tuple[Contestant, ...]] = (
    Limit(), Limit(apart=True), Tensorbus(), TensorbusShared(), Gloo(), Openmpi(),
)  # fmt: skip
"""Who has collectives; the first is the reference there."""
NAMED: Final[tuple[Contestant, ...]] = tuple({one.name: one for one in (*COLLECTIVE, *WITH_UCX)}.values())
"""All but variants of the bounded kind."""
SYSTEMS: Final = tuple(dict.fromkeys(one.system for one in (*WITH_UCX, *COLLECTIVE)))

BOUNDED_MESSAGE_BYTES: Final = 4096
"""Of the benchmark in which the bounded variants take part, as some systems bound messages and others bytes."""
BOUNDED_MESSAGES: Final = QUEUE_BYTES // BOUNDED_MESSAGE_BYTES
BOUNDED: Final[tuple[Contestant, ...]] = (
    Tensorbus("drop_oldest"),
    Tensorbus("drop_newest"),
    Tensorbus("latest"),
    Zeromq(BOUNDED_MESSAGES),
    Nats(QUEUE_BYTES),
    Redis(QUEUE_BYTES),
    Mosquitto(BOUNDED_MESSAGES),
)
"""Variants that hold about the same for a subscriber that does not read."""
BESIDE_BULK: Final[tuple[Contestant, ...]] = (*ALL[:5], Nats(pieces=True), *ALL[5:])
"""Everybody, and NATS in both ways to pass long messages on."""
EVERY: Final = {one.name: one for one in (*COLLECTIVE, *WITH_UCX, *BOUNDED, *BESIDE_BULK)}


def taking_part(able: Sequence[str], systems: Sequence[str]) -> list[Contestant]:
    """The contestants of a benchmark that are installed.

    Args:
        able: who can take part in it; empty for all that are no variants.
        systems: which systems are to be measured.
    """
    possible = [EVERY[name] for name in able] if able else ALL
    return [one for one in possible if one.system in systems and not one.missing()]


def by_name(name: str) -> Contestant:
    """The contestant of a name."""
    return EVERY[name]
