"""Which declaration decides about which topic, and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import LimitExceeded, PermissionDenied
from broker.topics.declarations import Held, Policies
from broker.topics.names import matches
from broker.topics.policy import SETTINGS, Declaration, Setting, TopicPolicy

FILTERS = ["a/b", "a/+", "a/#", "+/b", "+/+", "+/#", "#"]
"""Of the topic a/b, the most specific first."""


def declare(policies: Policies, topic_filter: str, origin: str = "declared by x", **settings: Setting) -> None:
    policies.declare(Declaration(topic_filter, settings, origin))


def held(policies: Policies, topic: str, setting: str) -> Held:
    return next(held for held in policies.explain(topic) if held.setting == setting)


def test_without_declarations_the_defaults_hold() -> None:
    assert Policies().of_topic("a") == TopicPolicy()
    assert Policies(TopicPolicy(ring_messages=7)).of_topic("a").ring_messages == 7


@pytest.mark.parametrize("rank", range(len(FILTERS)))
def test_the_most_specific_filter_decides(rank: int) -> None:
    policies = Policies()
    for number in (*range(rank + 1, len(FILTERS)), rank):
        declare(policies, FILTERS[number], ring_messages=number)
    assert policies.of_topic("a/b").ring_messages == rank
    assert held(policies, "a/b", "ring_messages").filter == FILTERS[rank]


def test_a_topic_is_more_specific_than_all_below_it() -> None:
    policies = Policies()
    declare(policies, "a", ring_messages=1)
    declare(policies, "a/#", ring_messages=2)
    assert policies.of_topic("a").ring_messages == 1
    assert policies.of_topic("a/b").ring_messages == 2


def test_each_setting_is_decided_for_itself() -> None:
    policies = Policies()
    declare(policies, "a/#", ring_messages=1, lane="bulk", overflow="latest")
    declare(policies, "a/+", ring_messages=2, lane="control")
    declare(policies, "a/b", ring_messages=3)
    policy = policies.of_topic("a/b")
    assert (policy.ring_messages, policy.lane, policy.overflow, policy.ring_bytes) == (
        3, "control", "latest", TopicPolicy().ring_bytes,
    )  # fmt: skip


def test_a_declaration_replaces_the_one_before_it_and_is_cleared_by_an_empty_one() -> None:
    policies = Policies()
    declare(policies, "a", ring_messages=1, lane="bulk")
    declare(policies, "a", "declared by y", ring_messages=2)
    assert policies.of_topic("a") == TopicPolicy(ring_messages=2)
    assert held(policies, "a", "ring_messages").origin == "declared by y"
    declare(policies, "a")
    assert policies.of_topic("a") == TopicPolicy()
    assert len(policies) == 0
    declare(policies, "a")
    assert len(policies) == 0


def test_what_was_replaced_is_told() -> None:
    policies = Policies()
    first = Declaration("a", {"lane": "bulk"}, "declared by x")
    assert policies.declare(first) is None
    assert policies.declare(Declaration("a", {"lane": "control"}, "declared by y")) is first


def test_what_the_configuration_fixes_no_client_replaces() -> None:
    policies = Policies(configured=[Declaration("a/#", {"ring_messages": 1}, "configuration")])
    with pytest.raises(PermissionDenied, match="'a/#' is fixed by the broker's configuration"):
        declare(policies, "a/#", ring_messages=2)
    with pytest.raises(PermissionDenied):
        declare(policies, "a/#")
    declare(policies, "a/b", ring_messages=3)
    assert (policies.of_topic("a/b").ring_messages, policies.of_topic("a/c").ring_messages) == (3, 1)


def test_declarations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.topics.declarations.DECLARATIONS_MAX", 3)
    policies = Policies()
    for number in range(3):
        declare(policies, f"a/{number}", ring_messages=1)
    with pytest.raises(LimitExceeded, match="declarations_max: 4 is over the limit of 3; .*clear some"):
        declare(policies, "a/3", ring_messages=1)
    assert policies.of_topic("a/3") == TopicPolicy()
    declare(policies, "a/2", ring_messages=5)
    declare(policies, "a/1")
    declare(policies, "a/3", ring_messages=6)
    assert policies.of_topic("a/3").ring_messages == 6


def test_topics_of_the_same_kind_share_their_policy() -> None:
    policies = Policies()
    declare(policies, "a/+", ring_messages=1)
    assert policies.of_topic("a/1") is policies.of_topic("a/2")


def test_wildcards_do_not_reach_the_topics_of_the_broker() -> None:
    policies = Policies()
    declare(policies, "#", ring_messages=1)
    declare(policies, "$dead/#", ring_messages=2)
    assert policies.of_topic("$sys/sessions") == TopicPolicy()
    assert policies.of_topic("$dead/jobs").ring_messages == 2


@pytest.mark.parametrize(
    ("topic_filter", "overflow"),
    [("a/b", "latest"), ("a/+", "drop_oldest"), ("a/#", "drop_oldest"), ("a/b/c", "drop_oldest"), ("a", "drop_oldest"),
     ("+/b", "drop_newest"), ("+/+", "drop_newest"), ("b/#", "block"), ("#", "block"), ("$sys/#", "block")],
)  # fmt: skip
def test_a_filter_gets_what_holds_for_all_that_it_matches(topic_filter: str, overflow: str) -> None:
    policies = Policies()
    declare(policies, "a/b", overflow="latest")
    declare(policies, "a/#", overflow="drop_oldest")
    declare(policies, "+/+", overflow="drop_newest")
    assert policies.of_filter(topic_filter).overflow == overflow


def test_each_setting_is_explained() -> None:
    policies = Policies(TopicPolicy(ring_bytes=9), [Declaration("a/#", {"lane": "bulk"}, "configuration")])
    declare(policies, "a/b", "declared by trainer-0", retain=True)
    explained = policies.explain("a/b")
    assert [held.setting for held in explained] == list(SETTINGS)
    assert Held("lane", "bulk", "a/#", "configuration") in explained
    assert Held("retain", True, "a/b", "declared by trainer-0") in explained
    assert Held("ring_bytes", 9, "", "configuration") in explained
    assert Held("overflow", "block", "", "default") in explained


LEVEL = st.sampled_from(["a", "b", "+"])
SOME_FILTERS = st.lists(LEVEL, min_size=1, max_size=3).map("/".join) | st.lists(LEVEL, max_size=2).map(
    lambda levels: "/".join([*levels, "#"])
)
TOPICS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)


def generality(topic_filter: str) -> list[int]:
    return ["abc".find(level) < 0 and 1 + (level == "#") for level in topic_filter.split("/")]


@given(st.dictionaries(SOME_FILTERS, st.integers(0, 9), max_size=6), TOPICS)
def test_the_decision_is_the_first_match_in_the_order_of_specificity(declared: dict[str, int], topic: str) -> None:
    policies = Policies()
    for topic_filter, number in declared.items():
        declare(policies, topic_filter, ring_messages=number)
    matching = sorted((f for f in declared if matches(f, topic)), key=generality)
    expected = declared[matching[0]] if matching else TopicPolicy().ring_messages
    assert policies.of_topic(topic).ring_messages == expected
    assert held(policies, topic, "ring_messages").value == expected
