"""Rules: what is allowed, and what a filter could match of it."""

from __future__ import annotations

import pytest

from broker.limits import TOPIC_LEVELS_MAX
from broker.security.rules import Rules, covered, overlaps
from tests.security.random_rules import World, differences, pattern_of


@pytest.mark.parametrize("seed", range(4))
def test_rules_agree_with_trying_every_topic(seed: int) -> None:
    assert list(differences(5000, seed)) == []


def test_the_world_of_the_random_cases_is_not_trivial() -> None:
    world = World()
    assert pattern_of("a/#").fullmatch("a")
    assert pattern_of("a/#").fullmatch("a/b/a")
    assert not pattern_of("+").match("$s")
    sizes = {each: world.bits[each].bit_count() for each in world.filters}
    assert sizes["a"] == 1
    assert sizes["a/#"] == 1 + 3 + 9 + 27
    assert sizes["#"] == 3 + 9 + 27 + 81
    assert sizes["$s/+"] == 3


def test_deny_wins() -> None:
    rules = Rules(("a/#",), ("a/secret",))
    assert rules.allows("a/b")
    assert not rules.allows("a/secret")
    assert not rules.allows("b")


def test_nothing_is_allowed_without_a_rule() -> None:
    assert not Rules().allows("a")
    assert not Rules().admits("a")
    assert not Rules((), ("a",)).admits("b")


def test_one_may_subscribe_around_what_is_denied_but_not_to_it() -> None:
    rules = Rules(("a/#",), ("a/secret/#",))
    assert rules.admits("a/#")
    assert rules.admits("a/+")
    assert not rules.admits("a/secret/b")
    assert not rules.admits("a/secret/#")
    assert not rules.allows_all("a/#")
    assert rules.allows_all("a/b/#")


def test_one_may_not_subscribe_to_more_than_is_allowed() -> None:
    rules = Rules(("a/#", "b"))
    assert not rules.admits("#")
    assert not rules.admits("+/b")
    assert not rules.admits("+")


def test_filters_cover_together_what_none_does_alone() -> None:
    assert covered("a/#", ("a", "a/+/#"))
    assert covered("+/b", ("a/b", "+/#"))
    assert not covered("a/#", ("a/+/#",))
    assert not covered("a/+", ("a/b", "a/c"))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a/+", "+/b", True), ("a/b", "a/b/#", True), ("a/b/c", "a/b", False), ("#", "$sys/a", False),
        ("$sys/#", "$sys/+", True), ("+/a", "b/+/#", True), ("a/+/c", "a/b/d", False), ("#", "+", True),
    ],
)  # fmt: skip
def test_filters_that_overlap_have_a_topic_in_common(one: str, other: str, expected: bool) -> None:
    assert overlaps(one, other) is expected
    assert overlaps(other, one) is expected


def test_wildcards_allow_none_of_the_brokers_own_topics() -> None:
    rules = Rules(("#",))
    assert not rules.allows("$sys/sessions")
    assert not rules.admits("$sys/#")
    assert not rules.admits("$dead/a")
    assert Rules(("#", "$sys/#")).admits("$sys/#")


def test_filters_made_to_take_long_are_refused_in_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # At each level either name leaves others over: all subsets of the filters would have to be looked at.
    depth = TOPIC_LEVELS_MAX - 2
    hard = tuple("/".join("a" if place == level else "+" for place in range(depth)) for level in range(depth))
    every = "/".join(["+"] * depth)
    looked = 0

    def counting(self: object, depth: int, others: object) -> bool:
        nonlocal looked
        looked += 1
        return goes(self, depth, others)  # type: ignore[arg-type]

    from broker.security import rules

    goes = rules._Search.goes
    monkeypatch.setattr(rules._Search, "goes", counting)
    assert not covered(f"{every}/#", (*hard, every, f"{every}/+/#"))
    assert 1000 < looked < rules.RULE_STEPS_MAX
    assert covered("+/+/#", ("a/+", "+/a", "+/+", "+/+/+/#"))
    assert covered(every, (*hard, every))


def test_what_a_rule_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.security.rules._REMEMBERED_MAX", 3)
    rules = Rules(("a/#",))
    assert all(rules.allows(f"a/{number}") for number in range(10))
    assert len(rules._known) <= 3
