"""The topic trie, with `matches` as its oracle."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.topics.names import matches
from broker.topics.trie import Trie

# Few names, so that filters and topics meet often.
LEVEL = st.sampled_from(["a", "b", "$s"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join)
FILTER = st.tuples(
    st.lists(st.one_of(LEVEL, st.just("+")), max_size=4), st.sampled_from([["#"], ["a"], ["+"], []])
).map(lambda parts: "/".join(parts[0] + parts[1]) or "#")
PAIR = st.tuples(FILTER, st.integers(0, 3))


def trie_of(*pairs: tuple[str, int]) -> Trie[int]:
    trie: Trie[int] = Trie()
    for topic_filter, value in pairs:
        trie.add(topic_filter, value)
    return trie


def test_values_come_in_the_order_of_their_addition() -> None:
    trie = trie_of(("a/#", 4), ("a/b", 3), ("+/b", 2), ("#", 1), ("a/c", 0))
    assert trie.match("a/b") == [4, 3, 2, 1]


def test_a_value_appears_once_for_each_filter_that_matches() -> None:
    assert trie_of(("a", 7), ("+", 7), ("b", 7)).match("a") == [7, 7]


def test_adding_a_pair_again_changes_nothing() -> None:
    trie = trie_of(("a", 1), ("a", 2))
    version = trie.version
    trie.add("a", 1)
    assert (trie.match("a"), len(trie), trie.version) == ([1, 2], 2, version)


def test_hash_matches_the_parent_level_too() -> None:
    assert trie_of(("a/#", 1), ("a/b/#", 2)).match("a") == [1]


def test_wildcards_at_the_first_level_do_not_match_reserved_topics() -> None:
    trie = trie_of(("#", 1), ("+/x", 2), ("$sys/+", 3), ("$sys/#", 4))
    assert trie.match("$sys/x") == [3, 4]


def test_the_version_changes_at_each_change() -> None:
    trie = trie_of()
    versions = [trie.version]
    trie.add("a", 1)
    versions.append(trie.version)
    trie.remove("a", 1)
    versions.append(trie.version)
    trie.add("a", 1)
    versions.append(trie.version)
    assert len(set(versions)) == 4


@pytest.mark.parametrize(("topic_filter", "value"), [("a/b", 2), ("a", 1), ("a/b/c", 1), ("b", 1)])
def test_removing_an_absent_pair_raises_and_changes_nothing(topic_filter: str, value: int) -> None:
    trie = trie_of(("a/b", 1))
    version = trie.version
    with pytest.raises(KeyError, match=topic_filter):
        trie.remove(topic_filter, value)
    assert (trie.match("a/b"), len(trie), trie.version) == ([1], 1, version)


def test_removal_leaves_no_empty_node_and_keeps_the_others() -> None:
    trie = trie_of(("a/b/c", 1), ("a/b", 2), ("x/y", 3))
    trie.remove("a/b/c", 1)
    trie.remove("x/y", 3)
    root = trie._root
    assert list(root.children) == ["a"]
    assert not root.children["a"].children["b"].children
    trie.remove("a/b", 2)
    assert not root.children
    assert len(trie) == 0


def calls_of_match(filters: int) -> int:
    """Calls, of Python and of C functions, of one match among so many filters, four of which match."""
    trie = trie_of(("metrics/rank-7/loss", 0), ("metrics/+/loss", 1), ("metrics/#", 2), ("+/rank-7/+", 3))
    for number in range(filters - 4):
        trie.add(f"metrics/rank-{number % 317}/{number}", number)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    found = trie.match("metrics/rank-7/loss")
    sys.setprofile(None)
    assert found == [0, 1, 2, 3]
    return calls


def test_the_work_of_a_match_does_not_grow_with_the_filters_that_do_not_match() -> None:
    assert calls_of_match(100_000) == calls_of_match(100)


def test_repr_is_a_summary() -> None:
    assert repr(trie_of(("a", 1), ("b", 1))) == "<Trie pairs=2 version=2>"


@given(st.lists(PAIR, max_size=20, unique=True), st.lists(st.integers(0, 19), max_size=20), TOPIC)
def test_the_trie_agrees_with_the_oracle_after_additions_and_removals(
    pairs: list[tuple[str, int]], removals: list[int], topic: str
) -> None:
    trie = trie_of(*pairs)
    kept = list(pairs)
    for index in removals:
        if index < len(kept):
            trie.remove(*kept.pop(index))
    assert len(trie) == len(kept)
    assert trie.match(topic) == [value for topic_filter, value in kept if matches(topic_filter, topic)]
