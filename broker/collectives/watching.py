"""What the broker sees of the operations on a board, which never reach it: who has come to which, and how it ended.

The broker looks now and then (`BoardWatch.look`). A position tells how far it is by counters that only grow, and what
it was asked for by the log of its last operations; the verdict tells how an operation has ended. What members write may
be rubbish, so every number is bounded before it is used, and a claim that cannot be read is none.

**Who holds an operation up.** All positions take the same steps in the same order, and wait for each other only for
steps that they have taken themselves. So when nothing moves, whoever has taken the fewest steps is waited for by the
others, and waits for none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from broker.collectives.claims import Claim, member_problem
from broker.collectives.effects import GivenUp, Mismatch, Missing
from broker.collectives.operation import OperationState
from broker.collectives.reading import LOG_ENTRIES, Entry, Standing
from broker.collectives.recorder import Outcome, Progress, Recorded, Recorder
from broker.collectives.snapshots import OperationSnapshot
from broker.errors import InvalidValue
from broker.ids import Rank
from broker.schedules import SHM

SLACK_NS: Final = 1_000_000_000
"""The broker may look with the time of its last tick."""
_COMMITTED: Final = 1
_OUTCOMES: Final[Mapping[int, Outcome]] = {
    _COMMITTED: Outcome.DONE,
    2: Outcome.MISSING,
    3: Outcome.MISMATCH,
    4: Outcome.INTERRUPTED,
    5: Outcome.VOID,
}
"""By the codes of board.h."""
_CHUNK_BITS: Final = 24
_UNREADABLE: Final = "a claim that cannot be read"


class BoardReader(Protocol):
    """Reads a board: broker/collectives/reading.py."""

    def pulse(self) -> int:
        """A number that changes when any position goes on."""
        ...

    def standings(self) -> list[Standing]:
        """How far each position is."""
        ...

    def entry(self, position: int, sequence: int) -> Entry | None:
        """What a position says of an operation."""
        ...

    def verdict(self, sequence: int) -> tuple[int, int, int]:
        """Sequence, code and author of what stands where an operation's verdict belongs."""
        ...

    def failure(self, author: int, sequence: int) -> tuple[int, int, dict[int, bytes]] | None:
        """Bits of positions, time-out and claims of a failure."""
        ...


class BoardWatch:
    """What is seen of one generation's operations; one thread may call."""

    def __init__(
        self, reader: BoardReader, group: str, generation: int, ranks: Sequence[Rank], world_size: int, now_ns: int
    ) -> None:
        """Args:
        reader: of the generation's board.
        group: its name.
        generation: of the group.
        ranks: its members, ascending: position n is rank `ranks[n]`.
        world_size: of the group.
        now_ns: nothing on the board is older.
        """
        self._reader = reader
        self._group = group
        self._generation = generation
        self._ranks = tuple(ranks)
        self._world_size = world_size
        self._since_ns = self._now_ns = now_ns
        self._pulse = 0
        self._standings: list[Standing] = []
        self._progress = Progress()
        self._recorded = 0
        """The last operation that was recorded, or is not known any more."""

    def look(self, recorder: Recorder, now_ns: int) -> None:
        """Reads what has happened since the last time, and records the operations that are over."""
        pulse, self._now_ns = self._reader.pulse(), now_ns
        if pulse == self._pulse and not self._in_progress():
            return
        self._pulse = pulse
        self._standings = standings = self._reader.standings()
        begun = max(each.begun for each in standings)
        first = max(self._recorded + 1, begun - LOG_ENTRIES + 1)
        left = min(each.left for each in standings)
        for sequence in range(first, begun + 1):
            outcome = self._outcome(sequence)
            over = left >= sequence or (outcome is not None and outcome is not Outcome.DONE)
            if not over:
                break
            self._record(recorder, sequence, outcome or Outcome.BROKEN)
        self._progress.observe({sequence: self._moved(sequence) for sequence in self._in_progress()}, now_ns)

    def still_ns(self, now_ns: int) -> int:
        """For how long an operation in progress has not moved."""
        return self._progress.still_ns(now_ns)

    def operations(self) -> tuple[OperationSnapshot, ...]:
        """The operations in progress when it was last looked, without those that nobody waits for any more."""
        shown = (self._snapshot(sequence) for sequence in self._in_progress())
        return tuple(each for each in shown if self._anybody_waits(each))

    def _anybody_waits(self, operation: OperationSnapshot) -> bool:
        inside = [each for each in self._standings if each.left < operation.sequence <= each.begun]
        return len(inside) == len(self._standings) or len(inside) > sum(
            each.begun >= operation.sequence
            for each, rank in zip(self._standings, self._ranks, strict=True)
            if rank in operation.missing_ranks
        )

    def end(self, recorder: Recorder, now_ns: int) -> None:
        """The generation is over, and with it what is in progress."""
        self.look(recorder, now_ns)
        for sequence in self._in_progress():
            self._record(recorder, sequence, Outcome.VOID)

    def _in_progress(self) -> list[int]:
        """Operations that are not over and in which somebody is, ascending: at most one for each position."""
        return sorted({each.begun for each in self._standings if each.begun > max(each.left, self._recorded)})

    def _outcome(self, sequence: int) -> Outcome | None:
        decided, code, _ = self._reader.verdict(sequence)
        return _OUTCOMES.get(code) if decided == sequence else None

    def _moved(self, sequence: int) -> int:
        return sum(_steps(each, sequence) for each in self._standings)

    def _record(self, recorder: Recorder, sequence: int, outcome: Outcome) -> None:
        entries = self._entries(sequence)
        finished_ns = max((entry.left_ns for entry in entries.values()), default=0)
        failure = "" if outcome in (Outcome.DONE, Outcome.VOID) else self._failure(sequence, outcome)
        self._recorded = sequence
        recorder.record(
            Recorded(
                self._generation, sequence, SHM, self._claim(entries), self._arrived(entries),
                self._bounded(finished_ns) if finished_ns else 0, outcome, failure,
            )
        )  # fmt: skip

    def _entries(self, sequence: int) -> dict[Rank, Entry]:
        found = {}
        for position, rank in enumerate(self._ranks):
            entry = self._reader.entry(position, sequence)
            if entry is not None:
                found[rank] = entry
        return found

    def _arrived(self, entries: Mapping[Rank, Entry]) -> dict[Rank, int]:
        came = {rank: self._bounded(entry.began_ns) for rank, entry in entries.items()}
        return dict(sorted(came.items(), key=lambda item: item[1]))

    def _bounded(self, time_ns: int) -> int:
        return min(max(time_ns, self._since_ns - SLACK_NS), self._now_ns + SLACK_NS)

    def _claim(self, entries: Mapping[Rank, Entry]) -> Claim | None:
        for entry in entries.values():
            claim = decoded_claim(entry.claim, self._world_size)
            if claim is not None:
                return claim
        return None

    def _failure(self, sequence: int, outcome: Outcome) -> str:
        """Why an operation has failed, in the words that its ranks have raised."""
        decided, _, author = self._reader.verdict(sequence)
        told = None
        if decided == sequence and author < len(self._ranks):
            told = self._reader.failure(author, sequence)
        if told is None:
            return f"group {self._group!r}: operation {sequence}: {outcome}"
        bits, timeout_ns, claims = told
        ranks = [rank for position, rank in enumerate(self._ranks) if bits >> position & 1]
        words = {
            self._ranks[position]: claim_in_full(decoded_claim(claim, self._world_size), self._ranks, self._generation)
            for position, claim in claims.items()
        }
        return failure_words(self._group, sequence, outcome, ranks, timeout_ns, words)

    def _snapshot(self, sequence: int) -> OperationSnapshot:
        entries = self._entries(sequence)
        arrived, claim = self._arrived(entries), self._claim(entries)
        standings = dict(zip(self._ranks, self._standings, strict=True))
        missing = [rank for rank, each in standings.items() if each.begun < sequence and rank not in arrived]
        state = OperationState.GATHERING if missing else OperationState.RUNNING
        inside = {rank: _steps(each, sequence) for rank, each in standings.items() if each.left < sequence}
        if not missing and inside:
            missing = [rank for rank, steps in inside.items() if steps == min(inside.values())]
        moved_ns = self._progress.since_ns(sequence)
        return OperationSnapshot(
            sequence=sequence,
            state=state,
            claim=claim_words(claim),
            rounds_done=min((_chunks(each.reduced, sequence) for each in self._standings), default=0),
            arrived_ns=arrived,
            missing_ranks=tuple(missing),
            deadline_ns=None,
            held_bytes=0,
            schedule=SHM,
            moved_ns=min(arrived.values(), default=self._now_ns) if moved_ns is None else moved_ns,
        )


def _chunks(counter: int, sequence: int) -> int:
    return counter & (1 << _CHUNK_BITS) - 1 if counter >> _CHUNK_BITS == sequence else 0


def _steps(standing: Standing, sequence: int) -> int:
    """How many steps of an operation a position has taken; more than any of those who are in it if it has left."""
    if standing.left >= sequence:
        return 1 << _CHUNK_BITS + 2
    chunks = sum(_chunks(counter, sequence) for counter in (standing.staged, standing.reduced, standing.collected))
    return (standing.begun >= sequence) + (standing.arrived >= sequence) + chunks


def failure_words(
    group: str,
    sequence: int,
    outcome: Outcome,
    ranks: Sequence[Rank],
    timeout_ns: int,
    claims: Mapping[Rank, str],
) -> str:
    """Why an operation has failed, in the words that its ranks have raised.

    Args:
        group: its name.
        sequence: of the operation.
        outcome: how it ended.
        ranks: who were missing, or gave up.
        timeout_ns: whose end it was when they were missing.
        claims: who asked for what, of a mismatch.
    """
    if outcome is Outcome.MISSING:
        return str(Missing(tuple(ranks), timeout_ns / 1e9).error(group, sequence))
    if outcome is Outcome.MISMATCH:
        return str(Mismatch({int(rank): words for rank, words in claims.items()}).error(group, sequence))
    if outcome is Outcome.INTERRUPTED and ranks:
        return str(GivenUp(ranks[0]).error(group, sequence))
    return f"group {group!r}: operation {sequence}: {outcome}"


def claim_words(claim: Claim | None) -> str:
    """What a rank asks for, in words."""
    return _UNREADABLE if claim is None else claim.describe()


def claim_in_full(claim: Claim | None, ranks: Sequence[Rank], generation: int) -> str:
    """As claim_words, and why these members cannot do that, if they cannot."""
    return claim_words(claim) + ("" if claim is None else member_problem(claim, ranks, generation))


def decoded_claim(data: bytes, world_size: int) -> Claim | None:
    """A claim from a stranger; None when it is none that can be in a group of this size."""
    try:
        claim = msgspec.msgpack.decode(data, type=Claim)
        claim.check(world_size)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, InvalidValue):
        return None
    return claim
