"""What a member tells of its operations over links, and when."""

from __future__ import annotations

from broker.collectives.ring import LOG_ENTRIES, Entry, Glance, Outcome
from broker.limits_links import LINK_REPORT_OPERATIONS
from broker.protocol.operations import TOLD_MAX, Operations, Told
from clients.collectives.reporting import Reporter

MS = 1_000_000
INTERVAL_NS = 100 * MS


class Engine:
    """Remembers what the test says has happened."""

    def __init__(self) -> None:
        self.now_ns = 10**15
        self.entries: list[Entry] = []
        self.begun = 0
        self.standing = (0, 0, 0, 0)
        self.thinning = 0

    def glance(self, after: int, thinning: int) -> Glance:
        self.thinning = thinning
        return Glance(
            self.now_ns, self.begun, *self.standing, [each for each in self.entries if each.sequence > after]
        )  # fmt: skip

    def begin(self, claim: bytes = b"claim", *, at_ms: float = 0) -> None:
        self.begun += 1
        self.entries.append(Entry(self.begun, self.now_ns + int(at_ms * MS), 0, Outcome.PENDING, 9, 9, claim))

    def end(self, outcome: Outcome = Outcome.COMMITTED, positions: int = 0, timeout_ns: int = 0) -> None:
        last = self.entries.pop()
        self.entries.append(
            last._replace(ended_ns=self.now_ns, status=outcome, positions=positions, timeout_ns=timeout_ns)
        )

    def go_on(self, by_ms: float) -> None:
        self.now_ns += int(by_ms * MS)


class Desk:
    def __init__(self, members: int = 4, interval_ns: int = INTERVAL_NS) -> None:
        self.engine = Engine()
        self.reporter = Reporter(self.engine, members, interval_ns)

    def tick(self, by_ms: float = 100) -> Operations | None:
        self.engine.go_on(by_ms)
        report = self.reporter.report(self.engine.now_ns)
        assert report is None or report[0] == self.engine.now_ns
        return None if report is None else report[1]


def test_what_has_ended_is_told_once_with_how_long_ago_that_was() -> None:
    desk = Desk()
    assert desk.tick() is None
    desk.engine.begin()
    desk.engine.go_on(2)
    desk.engine.end()
    desk.engine.go_on(3)
    assert desk.tick() == Operations([Told(1, 105 * MS, 103 * MS, 1, 0)], [b"claim"])
    assert desk.tick() is None


def test_nothing_is_told_between_times_nor_when_nobody_wants_to_hear_it() -> None:
    desk, silent = Desk(), Desk(interval_ns=0)
    for each in (desk, silent):
        each.tick()
        each.engine.begin()
        each.engine.end()
        assert each.tick(50) is None
    assert desk.tick(50) is not None
    assert silent.tick(50) is None
    assert silent.reporter.last() is None


def test_an_operation_that_takes_long_is_told_again_and_again_until_it_is_over() -> None:
    desk = Desk()
    desk.engine.begin()
    desk.engine.standing = (0, 2, 0b11, 7)
    assert desk.tick(90) is None
    assert desk.tick() == Operations([Told(1, 190 * MS, 0, 0, 0)], [b"claim"])
    desk.engine.standing = (1, 1, 0b100, 5000)
    for age_ms in (290, 390):
        assert desk.tick() == Operations([Told(1, age_ms * MS, 0, 0, 0)], [b"claim"], 1, 0b100, 5000)
    desk.engine.end(Outcome.MISSING, 0b100, 5)
    assert desk.tick() == Operations([Told(1, 490 * MS, 100 * MS, 2, 0, 0b100, 5)], [b"claim"])
    assert desk.tick() is None


def test_that_it_is_in_none_any_more_is_told_also_when_the_operation_is_forgotten() -> None:
    desk = Desk()
    desk.engine.begin()
    assert desk.tick() is not None
    desk.engine.entries.clear()
    assert desk.tick() == Operations()
    assert desk.tick() is None


def test_an_operation_that_is_in_doubt_counts_as_under_way() -> None:
    desk = Desk()
    desk.engine.begin()
    desk.engine.end(Outcome.UNDECIDED)
    assert desk.tick() == Operations([Told(1, 100 * MS, 0, 0, 0)], [b"claim"])
    desk.engine.end(Outcome.OVER)
    report = desk.reporter.last()
    assert report is not None
    assert report[1].told[0].outcome == 5


def test_the_same_claims_travel_once() -> None:
    desk = Desk()
    for claim in (b"a", b"b", b"a", b"b", b"a"):
        desk.engine.begin(claim)
        desk.engine.end()
    told = desk.tick()
    assert told is not None
    assert told.claims == [b"a", b"b"]
    assert [each.claim for each in told.told] == [0, 1, 0, 1, 0]


def test_of_many_operations_fewer_are_told_and_all_again_when_there_are_few() -> None:
    desk = Desk()
    desk.tick()
    assert desk.engine.thinning == 0
    for _ in range(3):
        desk.engine.begun += 1000
        desk.tick()
    assert 1000 >> desk.engine.thinning <= LINK_REPORT_OPERATIONS < 2 * 1000 >> desk.engine.thinning
    for _ in range(3):
        desk.engine.begun += 4
        desk.tick()
    assert desk.engine.thinning == 0


def test_how_much_is_told_does_not_swing_with_the_time_between_two_ticks() -> None:
    desk = Desk()
    found = set()
    for number in range(40):
        by_ms = 90 + number
        desk.engine.begun += 10 * by_ms
        desk.tick(by_ms)
        found.add(desk.engine.thinning)
    assert found <= {0, 6}


def test_members_of_large_groups_tell_less() -> None:
    desk = Desk(members=64)
    for _ in range(3):
        desk.engine.begun += 1000
        desk.tick()
    assert 1000 >> desk.engine.thinning <= 4


def test_a_report_tells_of_no_more_than_the_broker_reads() -> None:
    assert LOG_ENTRIES <= TOLD_MAX
