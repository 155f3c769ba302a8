"""Loops that outlive their ranks: no step is lost, made twice or half applied, whoever comes and goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest

import clients
from broker import limits
from tests.clients.ranks import PATIENCE_S, all_together, connect_rank, embedded_url, running
from tests.clients.serving import ServingThread

Hook = Callable[[int, clients.Elastic], None]


def nothing(number: int, elastic: clients.Elastic) -> None:
    """A hook that does nothing."""


class Rank:
    """A rank whose state is the sum of what all ranks have added in each step, and the steps that made it."""

    def __init__(self, url: str, rank: int | None, world_size: int) -> None:
        self.bus = connect_rank(url, f"rank-{rank}")
        self._join = lambda: self.bus.group("dp", world_size=world_size, rank=rank, timeout_s=PATIENCE_S)
        self.total = np.zeros(3)
        self.state: dict[str, object] = {"total": self.total, "made": []}
        self.changes: list[clients.GenerationChangedError] = []
        self.numbers: list[int] = []
        self.counts: dict[int, int] = {}

    def train(self, count: int, hook: Hook = nothing, made: int = 0, **options: object) -> Rank:
        return self.run(self.elastic(**options), count, hook, made)

    def elastic(self, **options: object) -> clients.Elastic:
        return clients.Elastic(self._join(), self.state, on_change=self.changes.append, timeout_s=PATIENCE_S, **options)

    def run(
        self, elastic: clients.Elastic, count: int, hook: Hook = nothing, made: int = 0, until: int | None = None
    ) -> Rank:
        for step in elastic.steps(count, made=made):
            if step.number == until:
                break
            with step:
                self.numbers.append(step.number)
                # The state changes before and after each collective: only a step that is undone whole adds up.
                self.total += 0.25
                present = elastic.group.all_reduce(np.ones(1), timeout_s=PATIENCE_S)
                self.total += 0.25
                hook(step.number, elastic)
                elastic.group.barrier(timeout_s=PATIENCE_S)
                self.total += 0.5
                self.state["made"].append(step.number)
                self.counts[step.number] = int(present[0])
        return self


@pytest.fixture
def url() -> str:
    return embedded_url()


def let_in(elastic: clients.Elastic, ranks: list[int]) -> None:
    """Waits in a step until the members are these: it is not over before a newcomer is among them."""
    while elastic.group.ranks != tuple(ranks):
        try:
            elastic.group.barrier(timeout_s=PATIENCE_S)
        except clients.GenerationChangedError as change:
            if change.ranks == ranks:
                raise


def check(rank: Rank, count: int) -> None:
    assert rank.total.tolist() == [count] * 3
    assert rank.state["made"] == list(range(count))


def test_without_changes_every_step_is_made_once(url: str) -> None:
    ranks = all_together(*(lambda rank=rank: Rank(url, rank, 3).train(5) for rank in range(3)))
    for rank in ranks:
        check(rank, 5)
        assert (rank.numbers, rank.changes) == (list(range(5)), [])


def test_ranks_that_were_all_restarted_go_on_with_the_newest_of_their_checkpoints(url: str) -> None:
    def resume(number: int, made: int) -> Rank:
        rank = Rank(url, number, 3)
        rank.total += made
        rank.state["made"].extend(range(made))
        return rank.train(7, made=made)

    ranks = all_together(*(lambda rank=rank, made=made: resume(rank, made) for rank, made in enumerate([2, 4, 0])))
    for rank in ranks:
        check(rank, 7)
        assert rank.numbers == [4, 5, 6]


def test_a_checkpoint_of_all_steps_leaves_none_and_one_before_the_first_is_refused(url: str) -> None:
    def resume(number: int) -> Rank:
        return Rank(url, number, 2).train(3, made=3)

    assert [rank.numbers for rank in all_together(lambda: resume(0), lambda: resume(1))] == [[], []]
    with clients.connect(url) as bus:
        elastic = clients.Elastic(bus.group("alone", world_size=1), {"total": np.zeros(1)})
        with pytest.raises(clients.InvalidValue, match="0 or more"):
            next(elastic.steps(3, made=-1))


def test_a_step_in_which_a_rank_is_lost_is_undone_and_made_again(url: str) -> None:
    ranks = [Rank(url, rank, 3) for rank in range(3)]

    def die(number: int, elastic: clients.Elastic) -> None:
        if number == 2:
            ranks[1].bus.close()

    with running() as start:
        others = [start(lambda rank=rank: rank.train(5)) for rank in (ranks[0], ranks[2])]
        with pytest.raises(clients.ConnectionClosed):
            ranks[1].train(5, die)
        for survivor in [other.result(PATIENCE_S) for other in others]:
            check(survivor, 5)
            assert survivor.numbers == [0, 1, 2, 2, 3, 4]
            assert survivor.counts == {0: 3, 1: 3, 2: 2, 3: 2, 4: 2}
            assert [change.lost_ranks for change in survivor.changes] == [[1]]
    # What the dying rank had half done was undone too.
    assert ranks[1].total.tolist() == [2.0] * 3


def test_a_newcomer_gets_the_state_at_a_step_boundary(url: str) -> None:
    veteran, newcomer = Rank(url, 0, 2), Rank(url, 1, 2)
    first = Rank(url, 1, 2)
    waiting: list[Future[Rank]] = []

    def leave(number: int, elastic: clients.Elastic) -> None:
        if number == 1:
            first.bus.close()

    def invite(number: int, elastic: clients.Elastic) -> None:
        if number == 4 and not waiting:
            waiting.append(start(lambda: newcomer.train(40)))
            let_in(elastic, [0, 1])

    with running() as start:
        leaving = start(lambda: first.train(40, leave))
        result = start(lambda: veteran.train(40, invite)).result(PATIENCE_S)
        with pytest.raises(clients.ConnectionClosed):
            leaving.result(PATIENCE_S)
        check(result, 40)
        check(waiting[0].result(PATIENCE_S), 40)
    assert newcomer.numbers[0] == 4
    assert set(newcomer.counts.values()) == {2}
    assert newcomer.total.tobytes() == veteran.total.tobytes()


def test_whoever_comes_while_the_others_finish_gets_their_state_and_ends(url: str) -> None:
    veteran, newcomer = Rank(url, 0, 2), Rank(url, 1, 2)
    first = Rank(url, 1, 2)
    waiting: list[Future[Rank]] = []

    def leave(number: int, elastic: clients.Elastic) -> None:
        if number == 1:
            first.bus.close()

    def invite(number: int, elastic: clients.Elastic) -> None:
        if number != 2 or waiting:
            return
        waiting.append(start(lambda: newcomer.train(3)))
        let_in(elastic, [0, 1])

    with running() as start:
        start(lambda: first.train(3, leave))
        start(lambda: veteran.train(3, invite)).result(PATIENCE_S)
        check(waiting[0].result(PATIENCE_S), 3)


def test_whoever_comes_after_the_last_step_is_told_so_and_does_not_wait_for_the_others(url: str) -> None:
    veteran, first, newcomer = Rank(url, 0, 2), Rank(url, 1, 2), Rank(url, 1, 2)

    def leave(number: int, elastic: clients.Elastic) -> None:
        if number == 1:
            first.bus.close()

    with running() as start:
        start(lambda: first.train(3, leave))
        check(start(lambda: veteran.train(3)).result(PATIENCE_S), 3)
    # The veteran is a member still, though it does not call any more.
    with pytest.raises(clients.GroupFinishedError, match="have finished"):
        newcomer.train(3)
    assert newcomer.numbers == []


def test_a_second_loop_lets_newcomers_in_again(url: str) -> None:
    rank, newcomer = Rank(url, 0, 1), Rank(url, 0, 1)
    elastic = clients.Elastic(rank._join(), rank.state, timeout_s=PATIENCE_S)
    for step in elastic.steps(2):
        with step:
            rank.numbers.append(step.number)
    with pytest.raises(clients.GroupFinishedError):
        newcomer.train(2)
    for step in elastic.steps(3):
        with step, pytest.raises(clients.CollectiveError, match="held by another session"):
            newcomer.train(2)


def test_a_rank_that_has_joined_since_the_last_step_is_told_so(url: str) -> None:
    veteran, first, newcomer = (connect_rank(url, name) for name in ("veteran", "first", "newcomer"))
    group, _ = all_together(
        *(
            lambda bus=bus, rank=rank: bus.group("dp", world_size=2, rank=rank, timeout_s=PATIENCE_S)
            for rank, bus in enumerate((veteran, first))
        )
    )
    first.close()
    with pytest.raises(clients.GenerationChangedError):
        group.barrier(timeout_s=PATIENCE_S)
    generation = group.generation
    late = newcomer.group("dp", world_size=2, rank=1, timeout_s=PATIENCE_S)
    with running() as start:
        waiting = start(lambda: late.barrier(timeout_s=PATIENCE_S))
        group.finish(generation=generation)
        with pytest.raises(clients.GroupFinishedError):
            waiting.result(PATIENCE_S)
    with pytest.raises(clients.GroupFinishedError):
        late.barrier(timeout_s=PATIENCE_S)


def test_an_error_of_the_program_undoes_the_step_and_goes_on_to_the_caller(url: str) -> None:
    rank = Rank(url, 0, 1)

    def fail(number: int, elastic: clients.Elastic) -> None:
        if number == 3:
            raise KeyError("a fault")

    with pytest.raises(KeyError, match="a fault"):
        rank.train(5, fail)
    check(rank, 3)


def test_without_rollback_the_state_is_the_programs_own(url: str) -> None:
    rank = Rank(url, 0, 1)

    def fail(number: int, elastic: clients.Elastic) -> None:
        raise KeyError("a fault")

    with pytest.raises(KeyError):
        rank.train(5, fail, rollback=False)
    assert rank.total.tolist() == [0.5] * 3


def test_a_step_has_to_be_run_in_a_with_block(url: str) -> None:
    with clients.connect(url) as bus:
        elastic = clients.Elastic(bus.group("dp", world_size=1), {})
        steps = elastic.steps(3)
        next(steps)
        with pytest.raises(clients.InvalidValue, match="with step:"):
            next(steps)


def test_arrays_that_cannot_be_changed_are_refused_at_once(url: str) -> None:
    with clients.connect(url) as bus:
        group = bus.group("dp", world_size=1)
        with pytest.raises(clients.InvalidValue, match="cannot be changed in place"):
            clients.Elastic(group, {"weight": np.frombuffer(b"12345678")})


def test_a_rank_that_loses_its_connection_joins_again_where_it_can() -> None:
    with ServingThread("tcp://127.0.0.1:0") as serving:
        ranks = [Rank(serving.url, rank, 2) for rank in range(2)]

        def cut(number: int, elastic: clients.Elastic) -> None:
            if number == 2 and not ranks[1].changes:
                # As a program that leaves by mistake, or a network that fails: the place is gone.
                elastic.group.leave()

        def stay(number: int, elastic: clients.Elastic) -> None:
            # Not to come to the end without it.
            if number == 5:
                let_in(elastic, [0, 1])

        first, second = all_together(
            lambda: ranks[0].train(6, stay), lambda: ranks[1].train(6, cut, rejoin=ranks[1]._join)
        )
        check(first, 6)
        check(second, 6)
        assert first.total.tobytes() == second.total.tobytes()


def test_a_rank_that_is_left_behind_by_a_quorum_makes_all_meet_and_gets_the_state(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "QUORUM_KEPT_MAX", 2)
    ahead = threading.Barrier(3)

    def train(rank: int) -> tuple[float, list[int], list[list[int]]]:
        total, numbers, changes = np.zeros(1), [], []
        with clients.connect(url, name=f"rank-{rank}") as bus:
            group = bus.group("dp", world_size=3, rank=rank, timeout_s=PATIENCE_S)
            elastic = clients.Elastic(
                group, {"total": total}, timeout_s=PATIENCE_S, on_change=lambda change: changes.append(change.ranks)
            )
            for step in elastic.steps(9):
                with step:
                    numbers.append(step.number)
                    if step.number == 2 and rank == 2:
                        ahead.wait(PATIENCE_S)
                    if step.number == 8 and rank != 2 and not changes:
                        ahead.wait(PATIENCE_S)
                    array = np.full(1, step.number + 1.0)
                    # Nobody is late before the third step, however busy the machine is.
                    deadline_s = PATIENCE_S if step.number < 2 else 0.05
                    group.all_reduce(array, "mean", quorum=2, deadline=deadline_s, timeout_s=PATIENCE_S)
                    total += array
        return float(total[0]), numbers, changes

    first, second, third = all_together(*(lambda rank=rank: train(rank) for rank in range(3)))
    # The others may have made their last step by then; they wait at the end, and nobody is left alone.
    assert first[0] == second[0] == third[0] == sum(range(1, 10))
    assert third[1] in ([0, 1, 2, 8], [0, 1, 2])
    assert first[2] == second[2] == third[2] == [[0, 1, 2]]


def test_a_second_loop_brings_ranks_together_that_do_not_agree_on_what_is_made(url: str) -> None:
    ranks = [Rank(url, rank, 2) for rank in range(2)]

    def train(number: int) -> Rank:
        rank = ranks[number]
        elastic = rank.elastic()
        rank.run(elastic, 3)
        if number:
            # As out of a checkpoint that the other one does not have.
            rank.total += 2
            rank.state["made"].extend([3, 4])
        return rank.run(elastic, 7, made=5 if number else 3)

    for rank in all_together(lambda: train(0), lambda: train(1)):
        check(rank, 7)
        assert (rank.numbers, rank.changes) == ([0, 1, 2, 5, 6], [])


def test_a_loop_that_was_left_is_gone_on_with_beside_others_that_wait_in_the_same_step(url: str) -> None:
    ranks = [Rank(url, rank, 2) for rank in range(2)]

    def train(number: int, made: int) -> Rank:
        rank = ranks[number]
        elastic = rank.elastic()

        def fail(step: int, group: clients.Elastic) -> None:
            raise KeyError("a fault")

        rank.run(elastic, 5, until=2)
        if number:
            with pytest.raises(KeyError), next(elastic.steps(5, made=2)):
                raise KeyError("a fault, before its first collective")
        return rank.run(elastic, 5, made=made)

    for rank in all_together(lambda: train(0, 2), lambda: train(1, 2)):
        check(rank, 5)
        assert (rank.numbers, rank.changes) == (list(range(5)), [])


def test_a_rank_that_goes_back_in_a_loop_that_was_left_gets_the_state_of_the_others(url: str) -> None:
    ranks = [Rank(url, rank, 2) for rank in range(2)]

    def train(number: int) -> Rank:
        rank = ranks[number]
        elastic = rank.elastic()
        rank.run(elastic, 5, until=2)
        if number:
            rank.total[:] = 0
            rank.state["made"].clear()
        return rank.run(elastic, 5, made=0 if number else 2)

    for rank in all_together(lambda: train(0), lambda: train(1)):
        check(rank, 5)
        assert sorted(set(rank.numbers)) == list(range(5))
        assert len(rank.changes) == 1
