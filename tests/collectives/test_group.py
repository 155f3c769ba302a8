"""Who is in a group: joins, refusals, losses and generations, as events in and effects out."""

from __future__ import annotations

import pytest

from broker import limits
from broker.collectives.claims import Claim
from broker.collectives.effects import (
    Changed,
    Dissolved,
    Effect,
    Failed,
    Finished,
    Joined,
    Missing,
    RefusalKind,
    Refused,
    Result,
)
from broker.collectives.group import Group
from broker.collectives.operation import OperationState
from broker.errors import CollectiveError, GroupFinishedError, InvalidValue, ProtocolError, RankTimeoutError
from broker.ids import GroupNumber, SessionId
from tests.collectives.harness import SECOND_NS, claim


class Desk:
    """A group and a hand that moves its clock; sessions are plain numbers here."""

    def __init__(self, world_size: int = 3) -> None:
        self.group = Group("dp", GroupNumber(9), world_size, now_ns=0)
        self.now_ns = 0

    def formed(self) -> Desk:
        """Sessions 10, 11, ... hold ranks 0, 1, ..."""
        for rank in range(self.group.world_size):
            self.join(10 + rank, rank)
        return self

    def join(
        self, session: int, rank: int | None = None, timeout_ns: int = SECOND_NS, world_size: int | None = None
    ) -> list[Effect]:
        size = self.group.world_size if world_size is None else world_size
        return self.group.join(SessionId(session), rank, size, timeout_ns, self.now_ns)

    def begin(self, session: int, sequence: int, its_claim: Claim | None = None, generation: int = 1) -> list[Effect]:
        """Round 0 of a barrier, or of a claim whose array is of one chunk."""
        its_claim = its_claim or Claim.barrier(SECOND_NS)
        payload = bytes(its_claim.nbytes)
        return self.group.contribute(SessionId(session), generation, sequence, 0, its_claim, payload, self.now_ns)

    def tick(self, now_ns: int) -> list[Effect]:
        self.now_ns = now_ns
        return self.group.tick(now_ns)

    def lost(self, session: int) -> list[Effect]:
        return self.group.lost(SessionId(session))


def refusal(effects: list[Effect]) -> Refused:
    (refused,) = (effect for effect in effects if isinstance(effect, Refused))
    return refused


def test_nobody_is_told_anything_until_the_last_member_has_come() -> None:
    desk = Desk(3)
    assert desk.join(10, 0) == desk.join(11, 1) == []
    ranks = (0, 1, 2)
    assert desk.join(12, 2) == [Joined(10, 0, 1, ranks), Joined(11, 1, 1, ranks), Joined(12, 2, 1, ranks)]


def test_ranks_given_by_the_broker_leave_out_those_that_later_joiners_ask_for() -> None:
    desk = Desk(3)
    desk.join(10)
    desk.join(11)
    assert desk.join(12, 0) == [Joined(12, 0, 1, (0, 1, 2)), Joined(10, 1, 1, (0, 1, 2)), Joined(11, 2, 1, (0, 1, 2))]


def test_a_group_of_one_begins_at_once() -> None:
    assert Desk(1).join(10) == [Joined(10, 0, 1, (0,))]


@pytest.mark.parametrize("world_size", [0, -1, limits.WORLD_SIZE_MAX + 1])
def test_a_world_size_out_of_bounds_makes_no_group(world_size: int) -> None:
    with pytest.raises(InvalidValue, match="world_size"):
        Group("dp", GroupNumber(1), world_size, 0)


def test_a_rank_that_somebody_waits_with_or_holds_is_refused() -> None:
    desk = Desk(2)
    desk.join(10, 1)
    assert refusal(desk.join(11, 1)).kind is RefusalKind.RANK_TAKEN
    desk.join(12, 0)
    assert refusal(desk.join(13, 1)).kind is RefusalKind.RANK_TAKEN


def test_another_world_size_is_refused_with_both_numbers() -> None:
    desk = Desk(3)
    desk.join(10)
    refused = refusal(desk.join(11, world_size=4))
    assert refused.kind is RefusalKind.WORLD_SIZE
    assert "world_size 4 differs from the 3" in refused.text


@pytest.mark.parametrize("rank", [-1, 3])
def test_a_rank_out_of_range_is_refused(rank: int) -> None:
    desk = Desk(3)
    desk.join(10)
    assert refusal(desk.join(11, rank)).kind is RefusalKind.RANK_OUT_OF_RANGE


def test_a_full_group_refuses_whether_it_has_begun_or_not() -> None:
    desk = Desk(2).formed()
    assert refusal(desk.join(12)).kind is RefusalKind.FULL
    desk.lost(11)
    desk.begin(10, 1, generation=2)
    desk.begin(10, 2, generation=2)
    desk.join(13)
    assert refusal(desk.join(14)).kind is RefusalKind.FULL


def test_a_session_joins_once() -> None:
    desk = Desk(2)
    desk.join(10)
    assert refusal(desk.join(10)).kind is RefusalKind.ALREADY_MEMBER
    desk.join(11)
    assert refusal(desk.join(11)).kind is RefusalKind.ALREADY_MEMBER


def test_a_refusal_becomes_an_error_that_names_the_group() -> None:
    desk = Desk(2).formed()
    error = refusal(desk.join(12)).error("dp")
    assert isinstance(error, CollectiveError)
    assert str(error) == "group 'dp': all 2 ranks are taken"


def test_a_first_join_that_is_refused_leaves_nothing_behind() -> None:
    effects = Desk(3).join(10, 3)
    assert isinstance(effects[0], Refused)
    assert effects[1:] == [Dissolved(9)]


def test_a_joiner_whose_time_is_over_is_told_who_is_missing() -> None:
    desk = Desk(4)
    desk.join(10, 2, timeout_ns=SECOND_NS)
    desk.join(11, None, timeout_ns=3 * SECOND_NS)
    assert desk.group.next_deadline_ns == SECOND_NS
    assert desk.tick(SECOND_NS - 1) == []
    (refused,) = desk.tick(SECOND_NS)
    assert isinstance(refused, Refused)
    assert (refused.session, refused.kind, refused.missing_ranks) == (10, RefusalKind.TIMEOUT, (1, 3))
    error = refused.error("dp")
    assert isinstance(error, RankTimeoutError)
    assert (error.sequence, error.missing_ranks, error.timeout_s) == (0, [1, 3], 1.0)
    late = desk.tick(3 * SECOND_NS)
    assert refusal(late).missing_ranks == (1, 2, 3)
    assert late[-1] == Dissolved(9)


def test_a_lost_member_changes_the_generation_for_every_survivor_once() -> None:
    desk = Desk(3).formed()
    assert desk.lost(11) == [Changed(10, 2, (1,), (0, 2)), Changed(12, 2, (1,), (0, 2))]


def test_a_member_that_leaves_is_told_nothing_and_the_others_as_for_a_loss() -> None:
    desk = Desk(2).formed()
    assert desk.group.leave(SessionId(11)) == [Changed(10, 2, (1,), (0,))]
    assert desk.group.leave(SessionId(11)) == []


def test_two_losses_are_two_changes() -> None:
    desk = Desk(3).formed()
    desk.lost(10)
    assert desk.lost(11) == [Changed(12, 3, (1,), (2,))]


def test_the_last_member_takes_the_group_with_it() -> None:
    desk = Desk(2).formed()
    desk.lost(10)
    assert desk.lost(11) == [Dissolved(9)]


def test_a_session_that_is_no_member_can_be_lost_without_effect() -> None:
    assert Desk(2).formed().lost(99) == []


def test_a_waiting_session_that_is_lost_frees_its_rank() -> None:
    desk = Desk(2)
    desk.join(10, 0)
    assert desk.lost(10) == [Dissolved(9)]
    assert desk.join(12, 0) == []


def test_a_newcomer_is_let_in_at_once_when_nothing_is_in_progress() -> None:
    desk = Desk(3).formed()
    desk.lost(11)
    ranks = (0, 1, 2)
    assert desk.join(20) == [Changed(10, 3, (), ranks), Changed(12, 3, (), ranks), Joined(20, 1, 3, ranks)]


def test_a_newcomer_waits_for_the_operation_in_progress() -> None:
    desk = Desk(3).formed()
    desk.lost(11)
    desk.begin(10, 1, generation=2)
    assert desk.join(20, 1) == []
    effects = desk.begin(12, 1, generation=2)
    assert [type(effect) for effect in effects] == [Result, Result, Changed, Changed, Joined]
    assert effects[0] == Result(10, 2, 1, 0, 0, b"", True)
    assert effects[-1] == Joined(20, 1, 3, (0, 1, 2))


def test_a_newcomer_is_let_in_when_the_operation_in_progress_fails() -> None:
    desk = Desk(3).formed()
    desk.lost(11)
    desk.begin(10, 1, generation=2)
    desk.join(20, 1, timeout_ns=9 * SECOND_NS)
    effects = desk.tick(SECOND_NS)
    assert effects[0] == Failed(10, 2, 1, Missing((2,), 1.0))
    assert effects[-1] == Joined(20, 1, 3, (0, 1, 2))


def test_a_newcomer_that_waits_too_long_is_told_who_holds_the_operation_up() -> None:
    desk = Desk(3).formed()
    desk.lost(11)
    desk.begin(10, 1, Claim.barrier(10 * SECOND_NS), generation=2)
    desk.join(20, 1)
    (refused,) = desk.tick(SECOND_NS)
    assert isinstance(refused, Refused)
    assert (refused.kind, refused.missing_ranks) == (RefusalKind.TIMEOUT, (2,))
    assert desk.group.ranks == (0, 2)


def test_whoever_comes_after_the_members_have_finished_is_refused() -> None:
    desk = Desk(2).formed()
    desk.lost(11)
    assert desk.group.finish(SessionId(10), 2) == []
    refused = refusal(desk.join(12, 1))
    assert (refused.session, refused.kind) == (12, RefusalKind.FINISHED)
    assert isinstance(refused.error("dp"), GroupFinishedError)
    assert desk.group.finish(SessionId(10), 0) == []
    assert desk.join(12, 1) == [Changed(10, 3, (), (0, 1)), Joined(12, 1, 3, (0, 1))]


def test_whoever_waits_as_the_members_finish_is_refused_and_whoever_has_come_since_is_told() -> None:
    desk = Desk(3).formed()
    desk.lost(11)
    desk.lost(12)
    desk.join(13, 1)
    assert desk.group.generation == 4
    desk.begin(10, 1, generation=4)
    assert desk.join(14, 2) == []
    refused, told = desk.group.finish(SessionId(10), 3)
    assert (refused.session, refused.kind) == (14, RefusalKind.FINISHED)
    assert told == Finished(13)
    assert desk.group.ranks == (0, 1)


def test_only_a_member_can_finish_and_only_a_generation_that_has_begun() -> None:
    desk = Desk(2).formed()
    desk.lost(11)
    assert desk.group.finish(SessionId(11), 2) == desk.group.finish(SessionId(10), 9) == []
    assert isinstance(desk.join(12, 1)[-1], Joined)


def test_a_group_that_has_finished_is_forgotten_when_all_have_left() -> None:
    desk = Desk(1).formed()
    desk.group.finish(SessionId(10), 1)
    assert desk.group.leave(SessionId(10)) == [Dissolved(9)]


def test_newcomers_form_anew_when_all_members_are_gone() -> None:
    desk = Desk(3).formed()
    desk.lost(11)
    desk.lost(12)
    desk.group.contribute(SessionId(10), 3, 1, 0, claim(shape=(32,)), bytes(64), 0)
    desk.join(20)
    assert desk.lost(10) == []
    desk.join(21)
    ranks = (0, 1, 2)
    assert desk.join(22) == [Joined(20, 0, 5, ranks), Joined(21, 1, 5, ranks), Joined(22, 2, 5, ranks)]


def test_a_loss_and_the_newcomer_that_waited_are_two_changes() -> None:
    desk = Desk(3).formed()
    desk.lost(12)
    desk.begin(10, 1, generation=2)
    desk.join(20, 2)
    effects = desk.lost(11)
    assert effects == [
        Changed(10, 3, (1,), (0,)),
        Changed(10, 4, (), (0, 2)),
        Joined(20, 2, 4, (0, 2)),
    ]


def test_the_operations_of_an_old_generation_are_void_and_sequences_start_again() -> None:
    desk = Desk(3).formed()
    desk.begin(10, 1)
    desk.begin(12, 1)
    desk.lost(11)
    assert desk.group.snapshot().operations == ()
    assert desk.begin(10, 2) == []
    assert desk.begin(10, 1, generation=2) == []
    assert desk.begin(12, 1, generation=2) == [Result(10, 2, 1, 0, 0, b"", True), Result(12, 2, 1, 0, 0, b"", True)]


def test_a_contribution_to_a_generation_that_has_not_begun_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="generation 2"):
        Desk(2).formed().begin(10, 1, generation=2)


def test_a_contribution_from_a_stranger_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="no member"):
        Desk(2).formed().begin(99, 1)


@pytest.mark.parametrize("sequence", [0, -1, 2])
def test_operations_are_started_in_order(sequence: int) -> None:
    with pytest.raises(ProtocolError, match="in place of 1"):
        Desk(2).formed().begin(10, sequence)


def test_a_claim_that_cannot_be_is_a_protocol_error() -> None:
    desk = Desk(2).formed()
    with pytest.raises(ProtocolError, match="negative axis"):
        desk.group.contribute(SessionId(10), 1, 1, 0, claim(shape=(-4,)), b"", 0)
    assert desk.group.snapshot().operations == ()


def test_a_claim_belongs_to_round_0_and_only_there() -> None:
    desk = Desk(2).formed()
    with pytest.raises(ProtocolError, match="without a claim"):
        desk.group.contribute(SessionId(10), 1, 1, 0, None, b"", 0)
    desk.begin(10, 1)
    with pytest.raises(ProtocolError, match="only round 0"):
        desk.group.contribute(SessionId(10), 1, 1, 1, claim(), b"", 0)


@pytest.mark.parametrize("sequence", [-1, 0, 2])
def test_a_later_round_of_an_operation_that_was_not_started_is_a_protocol_error(sequence: int) -> None:
    desk = Desk(2).formed()
    desk.begin(10, 1)
    with pytest.raises(ProtocolError, match="has not started"):
        desk.group.contribute(SessionId(10), 1, sequence, 1, None, b"", 0)


def test_a_rank_may_be_so_many_operations_ahead_and_no_more() -> None:
    desk = Desk(2).formed()
    for sequence in range(1, limits.OPERATIONS_AHEAD + 1):
        assert desk.begin(10, sequence) == []
    with pytest.raises(ProtocolError, match=f"may have {limits.OPERATIONS_AHEAD}"):
        desk.begin(10, limits.OPERATIONS_AHEAD + 1)
    assert [type(effect) for effect in desk.begin(11, 1)] == [Result, Result]
    assert desk.begin(10, limits.OPERATIONS_AHEAD + 1) == []


def test_a_deadline_names_the_missing_ranks_to_those_who_came_and_later_to_the_others() -> None:
    desk = Desk(3).formed()
    desk.begin(10, 1, Claim.barrier(5 * SECOND_NS))
    desk.begin(11, 1, Claim.barrier(2 * SECOND_NS))
    assert desk.group.next_deadline_ns == 2 * SECOND_NS
    failure = Missing((2,), 2.0)
    assert desk.tick(2 * SECOND_NS) == [Failed(10, 1, 1, failure), Failed(11, 1, 1, failure)]
    assert desk.group.next_deadline_ns is None
    assert desk.begin(12, 1) == [Failed(12, 1, 1, failure)]
    error = failure.error("dp", 1)
    assert (error.missing_ranks, error.timeout_s, error.sequence) == ([2], 2.0, 1)


def test_after_a_failure_the_group_goes_on_with_the_next_operation() -> None:
    desk = Desk(2).formed()
    desk.begin(10, 1)
    desk.tick(SECOND_NS)
    desk.begin(10, 2)
    assert desk.group.snapshot().untold_failures == 1
    assert [type(effect) for effect in desk.begin(11, 1)] == [Failed]
    assert desk.group.snapshot().untold_failures == 0
    assert [type(effect) for effect in desk.begin(11, 2)] == [Result, Result]
    assert desk.group.generation == 1


def test_a_stuck_rank_costs_bounded_memory_while_the_others_try_again_and_hears_of_every_failure() -> None:
    desk = Desk(2).formed()
    tries = limits.FAILED_OPERATIONS_MAX + 5
    for sequence in range(1, tries + 1):
        desk.begin(10, sequence)
        desk.tick(desk.now_ns + SECOND_NS)
    assert desk.group.snapshot().operations == ()
    for sequence in range(1, tries + 1):
        assert desk.begin(11, sequence) == [Failed(11, 1, sequence, Missing((1,), 1.0))]
    assert desk.begin(11, tries + 1) == []


def test_an_operation_that_still_runs_outlives_the_failures_after_it() -> None:
    desk = Desk(2).formed()
    desk.begin(10, 1, Claim.barrier(10**6 * SECOND_NS))
    for sequence in range(2, limits.FAILED_OPERATIONS_MAX + 5):
        desk.begin(10, sequence)
        desk.tick(desk.now_ns + SECOND_NS)
    assert [type(effect) for effect in desk.begin(11, 1)] == [Result, Result]


def test_a_later_round_of_a_failed_operation_is_dropped() -> None:
    desk = Desk(2).formed()
    desk.begin(10, 1, claim(shape=(16,)))
    desk.tick(SECOND_NS)
    assert desk.group.contribute(SessionId(10), 1, 1, 1, None, b"", 0) == []


def test_the_admin_interface_sees_who_holds_what_up() -> None:
    desk = Desk(3).formed()
    desk.begin(11, 1, claim(shape=(4,)))
    desk.now_ns = 7
    desk.begin(10, 1, claim(shape=(4,)))
    shown = desk.group.snapshot()
    assert (shown.name, shown.number, shown.generation, shown.world_size, shown.ranks) == ("dp", 9, 1, 3, (0, 1, 2))
    (operation,) = shown.operations
    assert operation.claim == "all_reduce sum float32 (4,) in chunks of 64 bytes"
    assert list(operation.arrived_ns.items()) == [(1, 0), (0, 7)]
    assert (operation.state, operation.missing_ranks) == (OperationState.GATHERING, (2,))
    assert (operation.sequence, operation.deadline_ns, operation.held_bytes) == (1, SECOND_NS, 32)
    assert desk.group.held_bytes == 32


def test_the_admin_interface_sees_free_ranks_and_waiting_sessions() -> None:
    desk = Desk(4)
    desk.join(10, 2)
    desk.join(11)
    shown = desk.group.snapshot()
    assert (shown.ranks, shown.missing_ranks, len(shown.newcomers)) == ((), (1, 3), 2)
    assert repr(desk.group) == "<Group 'dp' generation=0 ranks=[]/4 waiting=2 operations=0>"
