"""Which schedule is the quickest over links: a model of latency and bandwidth, the same on all ranks.

With n ranks, an array of b bytes, a hop that takes l seconds whatever it carries, and a wire of w bytes a second in
each direction, an all-reduce takes about

    ring        2 (n - 1) l  +  2 b (n - 1) / (n w)     a share goes round once to be reduced and once to be spread
    halving     2 ceil(log2 n) l  +  2 b (n - 1) / (n w)  n a power of two: distances double as shares halve; else the
                                                        ranks over the power send all they have to another one first,
                                                        and get it back: 2 l + 2 b / w more

An array of at most 128 KiB / n, or 4 KiB, needs neither: it goes whole to each, with the claim (ring_engine.h).

Where hosts have several ranks each, these share the host's wire: all of what the ranks of a host send to others has to
leave over it. With h hosts of up to m ranks, and i bytes a second inside one,

    hierarchical    2 (m - 1) l' + 2 (h - 1) l  +  max(2 b (h - 1) / (h w), 2 b (m - 1) / (m i))
                                                        ranks of a host add up before they send, and inside and
                                                        between hosts go on at the same time

(R. Thakur, R. Rabenseifner and W. Gropp, Optimization of Collective Communication Operations in MPICH, 2005.) Halving
sends to many ranks in turn, each time as much as is left: on switches that are shared, the ring is kinder from some
length on, and its wire is busy in both directions all the time. So halving is for arrays that are so short that hops
count, and the ring for the others.

Latency and bandwidth are constants and not measured: what two ranks measure differs, and so might what they choose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.schedules import HALVING, HIERARCHICAL, RING

STEPS_MAX: Final = 128
"""Of a plan; TB_STEPS_MAX of ring_engine.h."""


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


LOOPBACK: Final = Wire(hop_s=10e-6, bytes_per_s=3e9, crowding=1.0)
"""Between two ranks of one host."""


def ring_s(size_bytes: int, ranks: int, wire: Wire = ETHERNET, sharing: int = 1) -> float:
    """How long an all-reduce takes over a ring, in seconds, when so many ranks send over one wire."""
    return 2 * (ranks - 1) * wire.hop_s + sharing * 2 * size_bytes * (ranks - 1) / ranks / wire.bytes_per_s


def halving_s(size_bytes: int, ranks: int, wire: Wire = ETHERNET, sharing: int = 1) -> float:
    """How long an all-reduce takes by halving, in seconds, when so many ranks send over one wire."""
    power = 1 << (ranks.bit_length() - 1)
    hops, sent = 2 * (power.bit_length() - 1), 2 * size_bytes * (power - 1) / power
    if power < ranks:
        hops, sent = hops + 2, sent + 2 * size_bytes
    return hops * wire.hop_s + sharing * wire.crowding * sent / wire.bytes_per_s


def hierarchical_s(size_bytes: int, hosts: int, most: int, wire: Wire = ETHERNET, inside: Wire = LOOPBACK) -> float:
    """How long an all-reduce takes by hosts, of which one has `most` ranks and none has more, in seconds."""
    hops_s = 2 * (most - 1) * inside.hop_s + 2 * (hosts - 1) * wire.hop_s
    between_s = 2 * size_bytes * (hosts - 1) / hosts / wire.bytes_per_s
    return hops_s + max(between_s, 2 * size_bytes * (most - 1) / most / inside.bytes_per_s)


def has_hierarchy(hosts: Sequence[object]) -> bool:
    """Whether there are several hosts, and several ranks on one of them.

    Args:
        hosts: for each rank, what is the same for all ranks of a host.
    """
    counts = Counter(hosts)
    many, most = len(counts), max(counts.values(), default=0)
    return many > 1 and most > 1 and 2 * (most - 1) * many + 2 * (many - 1) <= STEPS_MAX


def choose(size_bytes: int, ranks: int, hosts: Sequence[object] = (), wire: Wire = ETHERNET) -> str:
    """`ring`, `halving` or `hierarchical`, for arrays of so many bytes; `hosts` as for `has_hierarchy`, or nothing."""
    counts = Counter(hosts)
    apart = len(counts) > 1
    leaving = Counter(host for host, after in zip(hosts, [*hosts[1:], *hosts[:1]], strict=True) if host != after)
    costs_s = {
        RING: ring_s(size_bytes, ranks, wire, max(leaving.values()) if apart else 1),
        HALVING: halving_s(size_bytes, ranks, wire, max(counts.values()) if apart else 1),
    }
    if has_hierarchy(hosts):
        costs_s[HIERARCHICAL] = hierarchical_s(size_bytes, len(counts), max(counts.values()), wire)
    return min(costs_s, key=costs_s.__getitem__)
