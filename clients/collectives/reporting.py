"""What a member tells the broker of its operations over links: those that have ended, and the one that takes long.

The engine remembers them (ring.Engine.glance); the client's keeper, or its loop, asks it on each tick, also while the
program's thread is in an operation or computes. In a loop of many short operations only some are told, the same by all
members. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from broker.collectives.ring import Entry, Glance, Outcome
from broker.limits_links import LINK_REPORT_GROUP_OPERATIONS, LINK_REPORT_OPERATIONS
from broker.protocol.operations import Operations, Told

_PENDING: Final = (int(Outcome.PENDING), int(Outcome.UNDECIDED))
_EARLY: Final = 0.8
"""Ticks come when they can: one that is a little early need not wait for the next one."""
_FEWER: Final = 4
"""More is told again when there is room for so many times as much."""


class Watched(Protocol):
    """An engine that can be looked at; see ring.Engine."""

    def glance(self, after: int, thinning: int) -> Glance: ...


class Reporter:
    """What one member tells of one generation's operations."""

    def __init__(self, engine: Watched, members: int, interval_ns: int) -> None:
        """Args:
        engine: of the generation's links.
        members: of the generation.
        interval_ns: how often to tell something; 0 is never.
        """
        self._engine = engine
        self._most = max(1, min(LINK_REPORT_OPERATIONS, LINK_REPORT_GROUP_OPERATIONS // members))
        self._interval_ns = interval_ns
        self._looked_ns = 0
        self._begun = 0
        self._ended = 0
        """The last operation that is told to have ended."""
        self._thinning = 0
        self._is_inside = False
        """Whether it is told that this member is in an operation."""

    def report(self, now_ns: int) -> tuple[int, Operations] | None:
        """What is to be told, if it is time for that, and the moment to which it refers; else None."""
        if not self._interval_ns or now_ns - self._looked_ns < _EARLY * self._interval_ns:
            return None
        return self._report()

    def last(self) -> tuple[int, Operations] | None:
        """What is left to be told when the generation has ended."""
        return self._report() if self._interval_ns else None

    def _report(self) -> tuple[int, Operations] | None:
        glance = self._engine.glance(self._ended, self._thinning)
        now_ns = glance.now_ns
        ended = [entry for entry in glance.entries if entry.status not in _PENDING]
        inside = [entry for entry in glance.entries[-1:] if entry.status in _PENDING and self._is_long(entry, now_ns)]
        self._thin(glance.begun, now_ns)
        if not (ended or inside or self._is_inside):
            return None
        self._ended = ended[-1].sequence if ended else self._ended
        self._is_inside = bool(inside)
        told, claims = _told([*ended, *inside], now_ns)
        if inside and inside[0].sequence == glance.seen:
            return now_ns, Operations(told, claims, glance.phase, glance.waits_for, glance.received_bytes)
        return now_ns, Operations(told, claims)

    def _is_long(self, entry: Entry, now_ns: int) -> bool:
        return now_ns - entry.began_ns >= self._interval_ns

    def _thin(self, begun: int, now_ns: int) -> None:
        """As many operations as were begun in this interval will be in the next one."""
        elapsed_ns = now_ns - self._looked_ns
        expected = (begun - self._begun) * self._interval_ns // max(1, elapsed_ns)
        if expected >> self._thinning > self._most or (expected * _FEWER) >> self._thinning <= self._most:
            self._thinning = max(0, (expected // self._most).bit_length())
        self._looked_ns, self._begun = now_ns, begun

    def __repr__(self) -> str:
        return f"<Reporter ended={self._ended} thinning={self._thinning}>"


def _told(entries: Sequence[Entry], now_ns: int) -> tuple[list[Told], list[bytes]]:
    """As it travels; programs ask for the same again and again."""
    claims: dict[bytes, int] = {}
    told = []
    for entry in entries:
        each = Told(entry.sequence, now_ns - entry.began_ns, 0, 0, claims.setdefault(entry.claim, len(claims)))
        if entry.status not in _PENDING:
            each.ended_ago_ns, each.outcome = now_ns - entry.ended_ns, entry.status
            each.positions, each.timeout_ns = entry.positions, entry.timeout_ns
        told.append(each)
    return told, list(claims)
