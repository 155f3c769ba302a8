"""What the broker says of a group without being asked."""

from __future__ import annotations

import msgspec
import pytest

from broker.collectives.claims import Claim
from broker.collectives.group import Group
from broker.collectives.recorder import Outcome, Recorded
from broker.ids import GroupNumber, Rank, SessionId
from broker.state.reports import Reports
from tests.state.harness import SECOND_NS

MS = 1_000_000


class Desk:
    """A group of two ranks whose operations are made up, and all that is said of it."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, object]]] = []
        self.reports = Reports(lambda topic, told: self.said.append((topic, told)))  # type: ignore[arg-type]
        self.group = Group("dp", GroupNumber(1), 2, 0)
        self.now_ns = 0
        for number in (10, 11):
            self.group.join(SessionId(number), None, 2, SECOND_NS, 0)

    def second(self, late_ns: dict[int, int], count: int = 70) -> list[dict[str, object]]:
        """A second with operations to which ranks came so late; returns what was said."""
        before = len(self.said)
        for sequence in range(count):
            came = {Rank(rank): self.now_ns + late_ns.get(rank, 0) for rank in (0, 1)}
            self.group.recorder.record(
                Recorded(1, sequence + 1, "star", Claim.barrier(1), came, self.now_ns, Outcome.DONE)
            )
        self.now_ns += SECOND_NS
        self.group.tick(self.now_ns)
        self.reports.look(self.group, self.group.snapshot, self.now_ns)
        return [told for _, told in self.said[before:]]


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.second({})
    return desk


def test_a_straggler_is_announced_when_it_is_one_and_when_it_is_none_any_more(desk: Desk) -> None:
    (told,) = desk.second({1: 50 * MS})
    assert told == {
        "event": "stragglers", "group": "dp", "generation": 1, "ranks": [0, 1],
        "stragglers": [{"rank": 1, "lateness_s": 0.05, "late_operations": 64, "operations": 64}],
    }  # fmt: skip
    assert desk.said[-1][0] == "$sys/groups/dp"
    assert desk.second({1: 60 * MS}) == []
    (changed,) = desk.second({1: 150 * MS})
    assert changed["event"] == "stragglers"
    (gone,) = desk.second({})
    assert gone["stragglers"] == []
    assert desk.second({}) == []


def test_an_operation_that_does_not_move_is_announced_once(desk: Desk) -> None:
    claim = Claim.barrier(60 * SECOND_NS)
    desk.group.contribute(SessionId(10), 1, 1, 0, claim, b"", desk.now_ns)
    desk.group.tick(desk.now_ns)
    assert [told["event"] for told in desk.second({})] == ["stuck"]
    assert desk.said[-1][1]["missing_ranks"] == [1]
    assert msgspec.json.encode(desk.said[-1][1])
    assert desk.second({}) == desk.second({}) == []
    desk.group.contribute(SessionId(11), 1, 1, 0, claim, b"", desk.now_ns)
    assert desk.second({}) == []
    desk.group.contribute(SessionId(11), 1, 2, 0, claim, b"", desk.now_ns)
    desk.group.tick(desk.now_ns)
    assert [told["missing_ranks"] for told in desk.second({})] == [[0]]


def test_of_a_group_that_is_gone_nothing_is_remembered(desk: Desk) -> None:
    desk.second({1: 50 * MS})
    desk.reports.forget(desk.group.number)
    assert repr(desk.reports) == "<Reports groups=0>"
