"""A tenant's allowance: what it is at each look, and when its publishers have to wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from broker.security.quotas import Quotas
from broker.state.flow import Flow
from broker.state.records import SessionRecord

SECOND_NS = 1_000_000_000


class World:
    """One session that has received so many bytes, and the flow of its tenant."""

    def __init__(self, **quotas: int) -> None:
        self.session = SimpleNamespace(received_bytes=0)
        self.record = cast("SessionRecord", SimpleNamespace(id=1, session=self.session))
        self.flow = Flow("blue", Quotas(**quotas))
        self.look(1.0)

    def look(self, at_s: float, *, came: int = 0, shared: int = 0, held: int = 0) -> bool:
        self.session.received_bytes += came
        return self.flow.look([self.record], shared, held, int(at_s * SECOND_NS))


def test_a_second_of_it_may_come_at_once_and_more_has_to_be_made_up_for() -> None:
    world = World(bytes_per_second_max=1000)
    world.look(1.0, came=1000)
    assert not world.flow.is_over
    world.look(1.0, came=500)
    assert world.flow.is_over
    assert not world.look(1.4)
    assert world.look(1.6), "publishers may go on"
    assert not world.flow.is_over


def test_silence_is_saved_up_for_one_second_and_no_longer() -> None:
    world = World(bytes_per_second_max=1000)
    world.look(100.0, came=1000)
    assert not world.flow.is_over
    world.look(100.0, came=1)
    assert world.flow.is_over


@pytest.mark.parametrize("way", ["shared", "ended"])
def test_what_comes_in_shared_memory_or_of_a_session_that_is_over_counts(way: str) -> None:
    world = World(bytes_per_second_max=1000)
    if way == "shared":
        world.look(1.0, shared=1001)
    else:
        world.session.received_bytes += 1001
        world.flow.ended(world.record)
        world.flow.look([], 0, 0, SECOND_NS)
    assert world.flow.is_over


def test_between_two_looks_the_credit_that_was_given_counts() -> None:
    world = World(bytes_per_second_max=1000)
    world.flow.granted(900)
    assert not world.flow.is_over
    world.flow.granted(200)
    assert world.flow.is_over
    assert world.look(1.05, came=100), "so much did not come after all"


def test_what_waits_is_bounded_as_well() -> None:
    world = World(held_bytes_max=1000)
    world.look(2.0, held=1001)
    assert world.flow.is_over
    assert world.look(3.0, held=1000)


def test_other_quotas_begin_anew() -> None:
    world = World(bytes_per_second_max=10)
    world.look(2.0, came=5000)
    assert world.flow.follow(Quotas(bytes_per_second_max=1000))
    world.look(2.05, came=0)
    assert not world.flow.is_over
    assert not Flow().is_bounded
