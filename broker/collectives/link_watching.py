"""What the broker knows of the operations over links, which never reach it: what their members tell of them.

Members tell ten times a second what is new, and, as long as an operation takes, that they are in it and for whom they
wait (`LinkWatch.told`). Nothing of it is believed: numbers are bounded before they are used, a claim that cannot be
read is none, and a member can only speak for itself, so whoever tells rubbish has rubbish in the table about itself.

**Who holds an operation up.** A member in an operation waits for some others: for those that have not come, for those
whose bytes are next, or for those that have not said that they have the whole result. Whoever is waited for and waits
for nobody holds it up, and so does whoever is waited for and says nothing: that one has not come, or cannot go on. Who
has not come because it is in an earlier operation still is held up there, by whoever holds that one up. When all wait
for one another, what one of them has said is old, and that one stands still: a tick or two are enough for that. Else
something between them is slow, and those are named who have got the fewest bytes.

    rank 0  waits for 3 ---.
    rank 1  waits for 0    |
    rank 2  waits for 1    v
    rank 3  has said nothing for LINK_SILENT_NS: it is named

**Clocks.** Each member has its own. A report says when it was written, and comes later than that by the difference of
the clocks and by its time on the way. The least of these sums over some seconds stands for the difference; how long the
quickest report was on its way is the error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from broker.collectives import costs
from broker.collectives.claims import Claim, CollectiveKind
from broker.collectives.operation import OperationState
from broker.collectives.recorder import Outcome, Progress, Recorded, Recorder
from broker.collectives.snapshots import OperationSnapshot
from broker.collectives.watching import SLACK_NS, claim_in_full, claim_words, decoded_claim, failure_words
from broker.ids import Rank
from broker.limits_links import LINK_CLOCK_NS, LINK_WORDS_MAX
from broker.schedules import AUTO, HIERARCHICAL, RING

LINK_SILENT_NS: Final = 400_000_000
"""Who is in an operation, and has said nothing for so long beside others who have, stands still."""
LINK_QUIET_NS: Final = 150_000_000
"""When all wait for one another, one that has said nothing for so long beside others who have is not as it says."""
FAILURE_NS: Final = 300_000_000
"""So long after the first word of a failure the others' words are waited for."""
_OUTCOMES: Final = {
    1: Outcome.DONE,
    2: Outcome.MISSING,
    3: Outcome.MISMATCH,
    4: Outcome.INTERRUPTED,
    5: Outcome.VOID,
    6: Outcome.INTERRUPTED,
    7: Outcome.BROKEN,
}
"""By the codes of docs/wire.md section 15."""
_CLOSED_MAX: Final = 64
_DECODED_MAX: Final = 256
_UNTOLD: Final = "a claim that it has not told"


class Word(NamedTuple):
    """What a member says of an operation; the times are those since then, in nanoseconds."""

    sequence: int
    began_ago_ns: int
    ended_ago_ns: int
    outcome: int
    claim: bytes
    positions: int
    timeout_ns: int


class Standing(NamedTuple):
    """What a member says of an operation that it is in: how far it is, and for which positions it waits, as bits."""

    phase: int
    waits_for: int
    received_bytes: int


class _Heard(NamedTuple):
    """A word, in the broker's time; without an outcome the operation is under way."""

    came_ns: int
    ended_ns: int
    outcome: Outcome | None
    claim: Claim | None
    positions: int
    timeout_ns: int


class _Clock:
    """By how much a member's clock is behind the broker's, and the quickest report on its way."""

    def __init__(self) -> None:
        self._since_ns = self._least_ns = 0
        self._before_ns: int | None = None

    def observe(self, sent_ns: int, now_ns: int) -> int:
        """A report has come; returns the least difference."""
        behind_ns, age_ns = now_ns - sent_ns, now_ns - self._since_ns
        if self._before_ns is None or age_ns >= 2 * LINK_CLOCK_NS:
            self._since_ns, self._before_ns, self._least_ns = now_ns, behind_ns, behind_ns
        elif age_ns >= LINK_CLOCK_NS:
            self._since_ns, self._before_ns, self._least_ns = now_ns, self._least_ns, behind_ns
        self._least_ns = min(self._least_ns, behind_ns)
        return min(self._before_ns, self._least_ns)


@dataclass(slots=True)
class _Member:
    """What is known of one member.

    Attributes:
        heard_ns: when it has said something last; 0 before.
        inside: the operation that it is in, as far as it has said; 0 when it is in none.
        told: the operations of which its words are kept, oldest first.
    """

    clock: _Clock = field(default_factory=_Clock)
    heard_ns: int = 0
    inside: int = 0
    standing: Standing = Standing(0, 0, 0)
    told: deque[int] = field(default_factory=deque)


@dataclass(slots=True)
class _Operation:
    """An operation that is not recorded yet.

    Attributes:
        ended: how many say that it is over.
        failed_ns: when the first has said that it has failed; 0 before.
    """

    heard: dict[Rank, _Heard] = field(default_factory=dict)
    ended: int = 0
    failed_ns: int = 0


class LinkWatch:
    """What is known of one generation's operations; one thread may call."""

    def __init__(
        self,
        group: str,
        generation: int,
        ranks: Sequence[Rank],
        world_size: int,
        schedule: str,
        now_ns: int,
        hosts: Sequence[str] = (),
    ) -> None:
        """Args:
        group: its name.
        generation: of the group.
        ranks: its members, ascending: position n is rank `ranks[n]`.
        world_size: of the group.
        schedule: by which its operations go; `auto` leaves it to the cost model, for each of them.
        now_ns: nothing that members tell is older.
        hosts: for each of its members, what is the same for all on one host; nothing when that is not known.
        """
        self.generation = generation
        self._group = group
        self._ranks = tuple(ranks)
        self._world_size = world_size
        self._schedule = schedule
        self._hosts = tuple(hosts)
        self._since_ns = self._now_ns = now_ns
        self._members = {rank: _Member() for rank in self._ranks}
        self._heard_ns = 0
        """When any of them has said something last."""
        self._operations: dict[int, _Operation] = {}
        self._due: set[int] = set()
        """Operations that may be over."""
        self._closed: dict[int, None] = {}
        """Those that are recorded, and of which somebody may still say something."""
        self._last = 0
        """The last one that is recorded."""
        self._progress = Progress()
        self._decoded: dict[bytes, Claim | None] = {}

    def told(self, rank: Rank, sent_ns: int, words: Iterable[Word], standing: Standing, now_ns: int) -> None:
        """A member has said what is new.

        Args:
            rank: the member.
            sent_ns: when it has written that, on its own clock.
            words: about operations; if the last one is under way, the member is in it.
            standing: how that one is.
            now_ns: the time.
        """
        member, self._now_ns = self._members[rank], now_ns
        since_ns = sent_ns + member.clock.observe(sent_ns, now_ns)
        self._heard_ns = member.heard_ns = now_ns
        member.inside, member.standing = 0, standing
        for word in words:
            if word.sequence < 1:
                continue
            outcome = _OUTCOMES.get(word.outcome)
            member.inside = 0 if outcome is not None or word.sequence in self._closed else word.sequence
            ended_ns = 0 if outcome is None else self._bounded(since_ns - word.ended_ago_ns)
            came_ns = self._bounded(since_ns - word.began_ago_ns)
            heard = _Heard(came_ns, ended_ns, outcome, self._claim(word.claim), word.positions, word.timeout_ns)
            self._hear(member, rank, word.sequence, heard)

    def _hear(self, member: _Member, rank: Rank, sequence: int, heard: _Heard) -> None:
        if sequence in self._closed:
            return
        operation = self._operations.setdefault(sequence, _Operation())
        before = operation.heard.get(rank)
        if before is not None and before.outcome is not None:
            return
        operation.heard[rank] = heard
        if heard.outcome is not None:
            operation.ended += 1
            if heard.outcome not in (Outcome.DONE, Outcome.VOID):
                operation.failed_ns = operation.failed_ns or self._now_ns
            if operation.failed_ns or operation.ended == len(self._ranks):
                self._due.add(sequence)
        if before is None:
            member.told.append(sequence)
            if len(member.told) > LINK_WORDS_MAX:
                self._forget(rank, member.told.popleft())

    def _forget(self, rank: Rank, sequence: int) -> None:
        """What a member has said of an operation is too old for the others to say something about it."""
        operation = self._operations.get(sequence)
        heard = operation.heard.pop(rank, None) if operation is not None else None
        if operation is None or heard is None:
            return
        operation.ended -= heard.outcome is not None
        if not operation.heard:
            del self._operations[sequence]
            self._due.discard(sequence)

    def _bounded(self, time_ns: int) -> int:
        return min(max(time_ns, self._since_ns - SLACK_NS), self._now_ns)

    def _claim(self, data: bytes) -> Claim | None:
        """Programs ask for the same again and again."""
        if data not in self._decoded:
            if len(self._decoded) >= _DECODED_MAX:
                self._decoded.clear()
            self._decoded[data] = decoded_claim(data, self._world_size)
        return self._decoded[data]

    def look(self, recorder: Recorder, now_ns: int) -> None:
        """Time has passed: operations that are over are recorded."""
        self._now_ns = now_ns
        for sequence in sorted(self._due):
            operation = self._operations[sequence]
            if operation.ended == len(self._ranks) or now_ns - operation.failed_ns >= FAILURE_NS:
                self._record(recorder, sequence, operation)
        self._progress.observe({sequence: self._moved(sequence) for sequence in self._in_progress()}, now_ns)

    def end(self, recorder: Recorder, now_ns: int) -> None:
        """The generation is over, and nothing more is said of it: so are its last operations."""
        self.look(recorder, now_ns)
        for sequence, operation in sorted(self._operations.items()):
            if sequence > self._last:
                self._record(recorder, sequence, operation)

    def still_ns(self, now_ns: int) -> int:
        """For how long an operation in progress has not moved."""
        return self._progress.still_ns(now_ns)

    def operations(self) -> tuple[OperationSnapshot, ...]:
        """The operations in progress, without those in which only members are that stand still."""
        return tuple(
            self._snapshot(sequence)
            for sequence in self._in_progress()
            if any(not self._is_silent(member) for member in self._inside(sequence).values())
        )

    # One operation.

    def _in_progress(self) -> list[int]:
        inside = {member.inside for member in self._members.values()}
        return sorted(sequence for sequence in inside if sequence in self._operations)

    def _inside(self, sequence: int) -> dict[Rank, _Member]:
        return {rank: member for rank, member in self._members.items() if member.inside == sequence}

    def _is_silent(self, member: _Member) -> bool:
        """By what others say, because all are late when the broker is."""
        return self._heard_ns - member.heard_ns >= LINK_SILENT_NS

    def _moved(self, sequence: int) -> int:
        operation, inside = self._operations[sequence], self._inside(sequence)
        moved = sum(each.standing.received_bytes + each.standing.phase for each in inside.values())
        return moved + len(operation.heard) + operation.ended

    def _held_up_by(self, sequence: int) -> tuple[Rank, ...]:
        """Who holds an operation up; see above."""
        inside = {rank: each for rank, each in self._inside(sequence).items() if not self._is_silent(each)}
        waited = {rank for each in inside.values() for rank in self._at(each.standing.waits_for)}
        found = {rank for rank in waited if rank in inside and not self._at(inside[rank].standing.waits_for)}
        for rank in waited - inside.keys():
            found.update(self._kept_by(rank, sequence))
        if waited and not found:
            quietest = min(waited, key=lambda rank: inside[rank].heard_ns)
            if self._heard_ns - inside[quietest].heard_ns >= LINK_QUIET_NS:
                return (quietest,)
            least = min(inside[rank].standing.received_bytes for rank in waited)
            found = {rank for rank in waited if inside[rank].standing.received_bytes == least}
        return tuple(sorted(found))

    def _kept_by(self, rank: Rank, sequence: int) -> tuple[Rank, ...]:
        """Who keeps a member from an operation: itself, or who holds up an earlier one that it is in still."""
        member = self._members[rank]
        if 0 < member.inside < sequence and member.inside in self._operations and not self._is_silent(member):
            return self._held_up_by(member.inside) or (rank,)
        return (rank,)

    def _at(self, positions: int) -> list[Rank]:
        return [rank for position, rank in enumerate(self._ranks) if positions >> position & 1]

    def _snapshot(self, sequence: int) -> OperationSnapshot:
        heard, inside = self._operations[sequence].heard, self._inside(sequence)
        arrived, claim, moved_ns = _arrived(heard), _claim_of(heard), self._progress.since_ns(sequence)
        return OperationSnapshot(
            sequence=sequence,
            state=OperationState.RUNNING
            if any(each.standing.phase for each in inside.values())
            else OperationState.GATHERING,
            claim=claim_words(claim),
            rounds_done=0,
            arrived_ns=arrived,
            missing_ranks=self._held_up_by(sequence),
            deadline_ns=None,
            held_bytes=0,
            schedule=self._schedule_of(claim),
            moved_ns=min(arrived.values()) if moved_ns is None else moved_ns,
        )

    @property
    def schedule(self) -> str:
        """How its operations go; if the cost model chooses, what long arrays take."""
        if self._schedule != AUTO:
            return self._schedule
        return HIERARCHICAL if costs.has_hierarchy(self._hosts) else RING

    def _schedule_of(self, claim: Claim | None) -> str:
        """As members choose it."""
        if claim is not None and claim.kind is not CollectiveKind.ALL_REDUCE:
            return RING
        if self._schedule != AUTO:
            return self._schedule
        return self.schedule if claim is None else costs.choose(claim.nbytes, len(self._ranks), self._hosts)

    def _record(self, recorder: Recorder, sequence: int, operation: _Operation) -> None:
        heard = operation.heard
        del self._operations[sequence]
        self._due.discard(sequence)
        self._closed[sequence] = None
        if len(self._closed) > _CLOSED_MAX:
            del self._closed[next(iter(self._closed))]
        self._last = max(self._last, sequence)
        claim, outcome = _claim_of(heard), _outcome_of(heard)
        failure = "" if outcome in (Outcome.DONE, Outcome.VOID) else self._failure(sequence, heard, outcome)
        recorder.record(
            Recorded(
                self.generation, sequence, self._schedule_of(claim), claim, _arrived(heard),
                max(each.ended_ns for each in heard.values()), outcome, failure,
            )
        )  # fmt: skip

    def _failure(self, sequence: int, heard: dict[Rank, _Heard], outcome: Outcome) -> str:
        """Why it has failed: in the words of a member that has seen it, with each one's own claim."""
        seen = next(each for each in heard.values() if each.outcome is outcome)
        ranks = self._at(seen.positions)
        claims = {
            rank: claim_in_full(heard[rank].claim, self._ranks, self.generation) if rank in heard else _UNTOLD
            for rank in ranks
        }
        return failure_words(self._group, sequence, outcome, ranks, seen.timeout_ns, claims)

    def __repr__(self) -> str:
        return f"<LinkWatch {self._group!r} generation={self.generation} operations={len(self._operations)}>"


def _arrived(heard: dict[Rank, _Heard]) -> dict[Rank, int]:
    came = {rank: each.came_ns for rank, each in heard.items()}
    return dict(sorted(came.items(), key=lambda item: item[1]))


def _claim_of(heard: dict[Rank, _Heard]) -> Claim | None:
    return next((each.claim for each in heard.values() if each.claim is not None), None)


def _outcome_of(heard: dict[Rank, _Heard]) -> Outcome:
    """What has become of an operation: members do not differ in that, but they may not have heard of the end."""
    told = {each.outcome for each in heard.values()}
    failed = (outcome for outcome in Outcome if outcome in told and outcome not in (Outcome.DONE, Outcome.VOID))
    return next(failed, Outcome.DONE if Outcome.DONE in told else Outcome.VOID)
