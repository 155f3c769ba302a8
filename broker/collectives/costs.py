"""Which schedule is the quickest over links: a model of latency and bandwidth, the same on all ranks.

With n ranks, an array of b bytes, a hop that takes l seconds whatever it carries, and a wire of w bytes a second in
each direction, an all-reduce takes about

    ring        2 (n - 1) l  +  2 b (n - 1) / (n w)     a share goes round once to be reduced and once to be spread
    halving     2 ceil(log2 n) l  +  2 b (n - 1) / (n w)  n a power of two: distances double as shares halve; else the
                                                        ranks over the power send all they have to another one first,
                                                        and get it back: 2 l + 2 b / w more

(R. Thakur, R. Rabenseifner and W. Gropp, Optimization of Collective Communication Operations in MPICH, 2005.) Halving
sends to many ranks in turn, each time as much as is left: on switches that are shared, the ring is kinder from some
length on, and its wire is busy in both directions all the time. So halving is for arrays that are so short that hops
count, and the ring for the others.

Latency and bandwidth are constants and not measured: what two ranks measure differs, and so might what they choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Wire:
    """What is between two hosts.

    Attributes:
        hop_s: the time of a message that carries nothing, in seconds.
        bytes_per_s: in one direction.
        crowding: how much longer than over a ring bytes take where ranks send to distant ones; 1 is as long.
    """

    hop_s: float = 20e-6
    bytes_per_s: float = 1.25e9
    crowding: float = 1.25


ETHERNET: Final = Wire()
"""10 Gbit/s Ethernet and TCP."""


def ring_s(size_bytes: int, ranks: int, wire: Wire = ETHERNET) -> float:
    """How long an all-reduce takes over a ring, in seconds."""
    return 2 * (ranks - 1) * wire.hop_s + 2 * size_bytes * (ranks - 1) / ranks / wire.bytes_per_s


def halving_s(size_bytes: int, ranks: int, wire: Wire = ETHERNET) -> float:
    """How long an all-reduce takes by halving, in seconds."""
    power = 1 << (ranks.bit_length() - 1)
    hops, sent = 2 * (power.bit_length() - 1), 2 * size_bytes * (power - 1) / power
    if power < ranks:
        hops, sent = hops + 2, sent + 2 * size_bytes
    return hops * wire.hop_s + wire.crowding * sent / wire.bytes_per_s


def choose(size_bytes: int, ranks: int, wire: Wire = ETHERNET) -> str:
    """`ring` or `halving`, for arrays of so many bytes."""
    return "halving" if halving_s(size_bytes, ranks, wire) < ring_s(size_bytes, ranks, wire) else "ring"
