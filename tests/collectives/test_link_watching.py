"""What is made of what members tell of their operations over links: records, and who holds an operation up."""

from __future__ import annotations

import random

import msgspec
import pytest

from broker.admin.events import INTERVAL_S
from broker.collectives.claims import Claim, CollectiveKind, ReduceOp
from broker.collectives.link_watching import FAILURE_NS, LINK_QUIET_NS, LINK_SILENT_NS, LinkWatch, Standing, Word
from broker.collectives.operation import OperationState
from broker.collectives.recorder import Outcome, Recorded, Recorder
from broker.collectives.snapshots import OperationSnapshot
from broker.errors import RankTimeoutError
from broker.ids import Rank
from broker.limits_links import LINK_CLOCK_NS, LINK_REPORT_S, LINK_WORDS_MAX

MS = 1_000_000
SECOND_NS = 1_000 * MS
CLAIM = Claim(CollectiveKind.ALL_REDUCE, ReduceOp.SUM, None, "float32", (1000,), 1)
RUNNING, DONE, MISSING, MISMATCH, GIVEN_UP, OVER = 0, 1, 2, 3, 4, 5


class Desk:
    """Members of which each has a clock of its own, and what the broker makes of what they say.

    Time is in milliseconds, by the broker's clock.
    """

    def __init__(
        self, ranks: tuple[int, ...] = (0, 1, 2), schedule: str = "auto", *, clocks: dict[int, int] | None = None
    ) -> None:
        self.recorder = Recorder(10)
        self.watch = LinkWatch("dp", 3, [Rank(rank) for rank in ranks], 10, schedule, 0)
        self.ranks = ranks
        self.ahead_ms = clocks or {}

    def tell(
        self, rank: int, at_ms: float, *words: Word, phase: int = 0, waits_for: tuple[int, ...] = (), received: int = 0,
        way_ms: float = 0.1,
    ) -> None:  # fmt: skip
        """A report is written, and has come after some time."""
        bits = sum(1 << self.ranks.index(each) for each in waits_for)
        sent_ns = int((at_ms + self.ahead_ms.get(rank, 0)) * MS) + 3600 * SECOND_NS
        now_ns = int((at_ms + way_ms) * MS)
        self.watch.told(Rank(rank), sent_ns, words, Standing(phase, bits, received), now_ns)

    def done(self, sequence: int, came_ms: dict[int, float], ended_ms: float, at_ms: float) -> None:
        """An operation is done, and all tell of it."""
        for rank, came in came_ms.items():
            self.tell(rank, at_ms, word(sequence, at_ms - came, at_ms - ended_ms, DONE))

    def look(self, at_ms: float) -> list[Recorded]:
        self.watch.look(self.recorder, int(at_ms * MS))
        return self.recorder.recent(1000)

    def in_progress(self, at_ms: float) -> OperationSnapshot:
        self.look(at_ms)
        (operation,) = self.watch.operations()
        return operation


def word(
    sequence: int, began_ago_ms: float, ended_ago_ms: float = 0.0, outcome: int = RUNNING, claim: Claim | bytes = CLAIM,
    positions: int = 0, timeout_ms: int = 0,
) -> Word:  # fmt: skip
    data = claim if isinstance(claim, bytes) else msgspec.msgpack.encode(claim)
    return Word(
        sequence, int(began_ago_ms * MS), int(ended_ago_ms * MS), outcome, data, positions, timeout_ms * MS
    )  # fmt: skip


# Records.


def test_an_operation_of_which_all_say_that_it_is_done_is_recorded_with_the_moments_of_their_coming() -> None:
    desk = Desk(clocks={0: -5000, 1: 10**6, 2: 7})
    for rank, came_ms in ((0, 1000), (1, 1050), (2, 1001)):
        assert desk.look(1100) == []
        desk.tell(rank, 1100 + rank, word(1, 1100 + rank - came_ms, 40 + rank, DONE))
    (recorded,) = desk.look(1110)
    assert (recorded.generation, recorded.sequence, recorded.schedule) == (3, 1, "ring")
    assert (recorded.claim, recorded.outcome, recorded.failure) == (CLAIM, Outcome.DONE, "")
    assert list(recorded.arrived_ns) == [0, 2, 1]
    assert recorded.arrived_ns == pytest.approx({0: 1000 * MS, 2: 1001 * MS, 1: 1050 * MS}, abs=MS // 5)
    assert recorded.finished_ns == pytest.approx(1060 * MS, abs=MS // 5)
    assert desk.watch.operations() == ()


def test_a_straggler_is_as_late_as_it_is_whatever_its_clock_and_however_long_reports_take() -> None:
    desk, chance = Desk(clocks={1: 12_345, 2: -999_999}), random.Random(1)
    for step in range(20):
        start_ms = 200 * step
        came_ms = {rank: start_ms + chance.random() * 0.3 + 50 * (rank == 1) for rank in desk.ranks}
        for rank in desk.ranks:
            at_ms = start_ms + 60 + chance.random() * 100
            # One in four has an idle way; the others wait behind something.
            way_ms = 0.1 + chance.choice((0.0, chance.random(), 20.0, 80.0)) if step else 0.1
            desk.tell(rank, at_ms, word(step + 1, at_ms - came_ms[rank], at_ms - start_ms - 51, DONE), way_ms=way_ms)
    assert len(desk.look(5000)) == 20
    (straggler,) = desk.recorder.stragglers()
    assert (straggler.rank, straggler.late_operations) == (1, 20)
    assert straggler.lateness_ns == pytest.approx(50 * MS, rel=0.02)


def test_a_clock_that_drifts_is_followed() -> None:
    desk = Desk((0, 1))
    for sequence in range(1, 601):
        at_ms = 200 * sequence
        desk.ahead_ms[1] = sequence * 0.02  # 100 microseconds in a second: 12 ms in two minutes.
        desk.done(sequence, {0: at_ms - 20, 1: at_ms - 20}, at_ms - 10, at_ms)
        desk.look(at_ms + 1)
    arrived_ns = desk.recorder.recent(1)[0].arrived_ns
    assert abs(arrived_ns[Rank(0)] - arrived_ns[Rank(1)]) <= 2 * LINK_CLOCK_NS * 100e-6
    assert desk.recorder.stragglers() == []


@pytest.mark.parametrize(
    ("schedule", "claim", "expected"),
    [
        ("auto", CLAIM, "halving"),
        ("auto", msgspec.structs.replace(CLAIM, shape=(10_000_000,)), "ring"),
        ("ring", CLAIM, "ring"),
        ("halving", CLAIM, "halving"),
        ("halving", Claim.barrier(1), "ring"),
        ("halving", b"rubbish", "halving"),
    ],
)
def test_the_schedule_is_the_one_that_the_members_take(schedule: str, claim: Claim | bytes, expected: str) -> None:
    desk = Desk((0, 1, 2, 3), schedule)
    for rank in desk.ranks:
        desk.tell(rank, 100, word(1, 10, 5, DONE, claim))
    assert [each.schedule for each in desk.look(100)] == [expected]


def test_operations_that_only_some_tell_of_are_not_recorded() -> None:
    desk = Desk()
    desk.tell(0, 100, *(word(sequence, 10, 9, DONE) for sequence in range(1, 11)))
    desk.tell(1, 100, *(word(sequence, 10, 9, DONE) for sequence in (2, 4, 6, 8, 10)))
    desk.tell(2, 100, *(word(sequence, 10, 9, DONE) for sequence in (4, 8)))
    assert [each.sequence for each in desk.look(101)] == [4, 8]


def test_a_mismatch_is_told_with_what_each_rank_asks_for() -> None:
    desk = Desk()
    other = msgspec.structs.replace(CLAIM, shape=(999,))
    for rank, claim in ((0, CLAIM), (1, other), (2, CLAIM)):
        assert desk.look(100) == []
        desk.tell(rank, 100, word(1, 10, 5, MISMATCH, claim, positions=0b111))
    (recorded,) = desk.look(101)
    assert recorded.outcome is Outcome.MISMATCH
    assert recorded.failure == (
        "group 'dp': operation 1 does not match on all ranks: rank 0: all_reduce sum float32 (1000,); "
        "rank 1: all_reduce sum float32 (999,); rank 2: all_reduce sum float32 (1000,)"
    )
    assert desk.recorder.last_failure is recorded


def test_what_nobody_can_carry_out_is_told_with_the_reason() -> None:
    desk = Desk()
    claim = Claim(CollectiveKind.BROADCAST, None, 7, "float32", (3,), 1)
    for rank in desk.ranks:
        desk.tell(rank, 100, word(1, 10, 5, MISMATCH, claim, positions=0b111))
    assert "rank 1: broadcast from rank 7 float32 (3,), but rank 7 is not in generation 3" in desk.look(101)[0].failure


def test_a_failure_is_recorded_soon_although_somebody_says_nothing_of_it() -> None:
    desk = Desk()
    for rank in (0, 1):
        desk.tell(rank, 1000, word(1, 500, 5, MISSING, positions=0b100, timeout_ms=500))
    assert desk.look(1001) == []
    (recorded,) = desk.look(1001 + FAILURE_NS / MS)
    assert recorded.outcome is Outcome.MISSING
    assert recorded.failure == str(RankTimeoutError("dp", 1, [2], 0.5))
    assert sorted(recorded.arrived_ns) == [0, 1]
    desk.tell(2, 2000, word(1, 600, 500, MISSING, positions=0b100, timeout_ms=500))
    assert len(desk.look(9000)) == 1, "who comes late does not make it fail again"


def test_a_rank_that_gave_up_is_named() -> None:
    desk = Desk()
    for rank in desk.ranks:
        desk.tell(rank, 100, word(1, 10, 5, GIVEN_UP, positions=0b10))
    assert desk.look(101)[0].failure == "group 'dp': operation 1: the program of rank 1 gave it up"


def test_what_a_generation_leaves_is_void_unless_somebody_has_finished_it() -> None:
    desk = Desk()
    for rank in desk.ranks:
        desk.tell(rank, 100, word(1, 50, 40, DONE))
    desk.tell(0, 200, word(2, 90, 80, DONE), word(3, 75, 5, OVER))
    desk.tell(1, 200, word(2, 90, 80, DONE), word(3, 75, 5, OVER))
    desk.tell(2, 150, word(3, 25), waits_for=(0,))
    desk.watch.end(desk.recorder, 700 * MS)
    assert [(each.sequence, each.outcome) for each in desk.recorder.recent(10)] == [
        (1, Outcome.DONE),
        (2, Outcome.DONE),
        (3, Outcome.VOID),
    ]
    assert desk.recorder.last_failure is None


# In progress.


def test_a_rank_that_has_not_come_is_named_by_those_that_wait_for_it() -> None:
    desk = Desk()
    desk.tell(2, 1000, word(7, 150), waits_for=(0, 1))
    assert desk.in_progress(1001).missing_ranks == (0, 1)
    for at_ms in (1100, 1200, 1300):
        desk.tell(2, at_ms, word(7, at_ms - 850), waits_for=(1,))
        desk.tell(0, at_ms, word(7, at_ms - 900), waits_for=(1,))
    operation = desk.in_progress(1301)
    assert (operation.sequence, operation.state, operation.schedule) == (7, OperationState.GATHERING, "ring")
    assert operation.claim == "all_reduce sum float32 (1000,)"
    assert list(operation.arrived_ns) == [2, 0]
    assert operation.missing_ranks == (1,)


def test_a_rank_that_stands_still_in_the_middle_is_found_along_the_chain() -> None:
    desk = Desk((0, 1, 2, 3))
    for at_ms in range(1000, 2000, 100):
        for rank in (0, 1, 2, 3):
            if rank != 3 or at_ms == 1000:
                left = (rank - 1) % 4
                desk.tell(rank, at_ms, word(7, at_ms - 850), phase=1, waits_for=(left,), received=100 * rank)
    operation = desk.in_progress(1910)
    assert operation.state is OperationState.RUNNING
    assert operation.missing_ranks == (3,)
    assert sorted(operation.arrived_ns) == [0, 1, 2, 3]


@pytest.mark.parametrize("stopped", [0, 1, 2, 3])
def test_a_rank_that_is_stopped_is_named_soon_enough_for_a_page_to_show_it_within_a_second(stopped: int) -> None:
    desk, stopped_ms, every_ms = Desk((0, 1, 2, 3)), 1000, int(LINK_REPORT_S * 1000)
    # At the worst it has told the last of itself just before, and a page looks just after the others have told.
    until_ms = stopped_ms + 1000 - int(INTERVAL_S * 1000) - every_ms
    for at_ms in range(stopped_ms, until_ms + 1, every_ms):
        for rank in desk.ranks:
            if rank != stopped or at_ms == stopped_ms:
                left = (rank - 1) % 4
                desk.tell(rank, at_ms, word(7, at_ms - 850), phase=1, waits_for=(left,), received=100 * rank)
    operation = desk.in_progress(until_ms + 1)
    assert operation.missing_ranks == (stopped,)


def test_who_holds_up_a_rank_in_an_earlier_operation_holds_the_later_one_up_too() -> None:
    desk = Desk()
    desk.tell(0, 1000, word(2, 200), waits_for=(1,))
    desk.tell(1, 1000, word(1, 300), phase=2, waits_for=(2,))
    desk.look(1001)
    first, second = desk.watch.operations()
    assert (first.sequence, first.missing_ranks) == (1, (2,))
    assert (second.sequence, second.missing_ranks) == (2, (2,))


@pytest.mark.parametrize("silent", [False, True])
def test_a_rank_that_was_stopped_when_only_some_had_its_last_word_is_named_alone(silent: bool) -> None:
    desk = Desk((0, 1, 2, 3))
    # Rank 0 has heard that all have the result, and has gone on. Ranks 2 and 3 have not heard so of rank 1.
    for at_ms in range(1000, 2000 if silent else 1200, 100):
        desk.tell(0, at_ms, word(8, at_ms - 900), waits_for=(1, 2, 3))
        for rank in (2, 3):
            desk.tell(rank, at_ms, word(7, at_ms - 850), phase=2, waits_for=(1,))
        if at_ms == 1000:
            desk.tell(1, at_ms, word(7, at_ms - 850), phase=2)
    desk.look(1901)
    assert [(each.sequence, each.missing_ranks) for each in desk.watch.operations()] == [(7, (1,)), (8, (1,))]


def test_when_all_wait_for_one_another_those_are_named_that_have_the_least() -> None:
    desk = Desk()
    for rank in desk.ranks:
        desk.tell(rank, 1000, word(1, 200), phase=1, waits_for=((rank - 1) % 3,), received=[500, 20, 300][rank])
    assert desk.in_progress(1001).missing_ranks == (1,)


def test_when_all_wait_for_one_another_the_one_that_has_not_said_so_for_a_while_is_named() -> None:
    desk = Desk()
    for at_ms in (1000, 1100, 1200):
        for rank in desk.ranks if at_ms == 1000 else (0, 2):
            desk.tell(rank, at_ms, word(1, 200), phase=1, waits_for=((rank - 1) % 3,), received=[5, 20, 30][rank])
        expected = (0,) if at_ms < 1000 + LINK_QUIET_NS / MS else (1,)
        assert desk.in_progress(at_ms + 1).missing_ranks == expected


def test_when_the_broker_was_late_itself_nobody_stands_still() -> None:
    desk = Desk()
    for rank in desk.ranks:
        desk.tell(rank, 1000, word(1, 200), phase=1, waits_for=((rank - 1) % 3,), received=5)
    assert desk.in_progress(20_000).missing_ranks == (0, 1, 2)


def test_an_operation_moves_as_long_as_bytes_come_and_ranks_arrive() -> None:
    desk = Desk((0, 1))
    desk.tell(0, 1000, word(1, 100), waits_for=(1,))
    assert desk.in_progress(1050).moved_ns == 1050 * MS
    assert desk.in_progress(1100).moved_ns == 1050 * MS
    for at_ms, received in ((1200, 0), (1300, 10), (1400, 10), (1500, 20)):
        desk.tell(0, at_ms, word(1, at_ms - 900), phase=1, waits_for=(1,), received=received)
        moved_ns = desk.in_progress(at_ms + 10).moved_ns
        assert moved_ns == (at_ms + 10 - 100 * (at_ms == 1400)) * MS


def test_who_says_that_it_is_in_no_operation_any_more_is_in_none() -> None:
    desk = Desk()
    desk.tell(0, 1000, word(5, 200), waits_for=(1,))
    assert desk.in_progress(1001).sequence == 5
    desk.tell(0, 1100)
    desk.look(1101)
    assert desk.watch.operations() == ()


def test_an_operation_in_which_only_a_rank_is_that_stands_still_is_not_in_progress() -> None:
    desk = Desk()
    desk.tell(2, 1000, word(5, 200), phase=2, waits_for=(1,))
    for rank in (0, 1):
        desk.tell(rank, 1000 + LINK_SILENT_NS / MS, word(6, 100), waits_for=(2,))
    assert desk.in_progress(1500).sequence == 6
    assert desk.in_progress(1500).missing_ranks == (2,)


# Rubbish.


def test_rubbish_is_in_what_its_teller_says_and_nowhere_else() -> None:
    desk, chance = Desk(), random.Random(3)
    wild = [0, 1, -1, 2**63, 2**64 - 1, -(2**63), 5, 64]

    def pick() -> int:
        return chance.choice(wild)

    for step in range(1, 400):
        words = [
            Word(pick() + step, pick(), pick(), pick(), chance.randbytes(chance.randrange(40)), pick(), pick())
            for _ in range(chance.randrange(4))
        ]
        desk.watch.told(Rank(2), pick(), words, Standing(pick(), pick(), pick()), step * 100 * MS)
        for rank in (0, 1):
            desk.tell(rank, step * 100, word(step, 50, 20, DONE))
        desk.tell(2, step * 100, word(step, 10, 20, DONE))
        desk.look(step * 100 + 1)
        assert all(isinstance(each.missing_ranks, tuple) for each in desk.watch.operations())
    for recorded in desk.recorder.recent(100):
        came = recorded.arrived_ns
        for rank in (0, 1):
            if rank in came:
                assert came[Rank(rank)] % (100 * MS) == pytest.approx(50 * MS, abs=MS)
        assert all(-SECOND_NS <= each <= 40 * SECOND_NS for each in came.values())
        assert -SECOND_NS <= recorded.finished_ns <= 40 * SECOND_NS


def test_of_one_member_no_more_than_some_words_are_kept() -> None:
    desk = Desk()
    for sequence in range(1, 50 * LINK_WORDS_MAX):
        desk.tell(0, sequence, word(sequence * 10**12, 1, 1, DONE, claim=b"%d" % sequence))
        desk.tell(1, sequence, word(sequence, 1, 1, MISSING if sequence % 2 else DONE, claim=b"%d" % sequence))
    assert len(desk.watch._operations) <= 2 * LINK_WORDS_MAX
    assert len(desk.watch._decoded) <= 256
    desk.look(10**6)
    assert len(desk.watch._closed) <= 64
