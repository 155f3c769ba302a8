"""Topics and topic filters: which are allowed, and what matches what."""

from __future__ import annotations

import itertools
import re
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidValue
from broker.limits import TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX
from broker.topics.names import check_filter, check_topic, covers, is_filter, is_reserved, levels, matches

LEVEL = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/+#$"), min_size=1, max_size=6)
TOPIC = st.lists(LEVEL, min_size=1, max_size=6).map("/".join)


@pytest.mark.parametrize(
    "topic", ["a", "gradients/trainer-3", "métriques/été/損失", "a b/c", "a/$b", "x" * TOPIC_BYTES_MAX]
)
def test_a_topic_is_levels_of_any_printable_text(topic: str) -> None:
    assert check_topic(topic) == topic
    assert check_filter(topic) == topic


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        ("/a", "level 1 is empty"),
        ("a/", "level 2 is empty"),
        ("a//b", "level 2 is empty"),
        ("/", "level 1 is empty"),
        ("a\x00b", "U+0000 at character 1"),
        ("a/b\n", "U+000A at character 3"),
        ("\x7f", "U+007F at character 0"),
        ("a\x85", "U+0085 at character 1"),
        ("a\ud800", "U+D800 at character 1"),
        ("x" * (TOPIC_BYTES_MAX + 1), f"is {TOPIC_BYTES_MAX + 1} bytes of UTF-8; the limit is {TOPIC_BYTES_MAX}"),
        ("é" * TOPIC_BYTES_MAX, f"is {2 * TOPIC_BYTES_MAX} bytes of UTF-8"),
        ("/".join("x" * (TOPIC_LEVELS_MAX + 1)), f"has {TOPIC_LEVELS_MAX + 1} levels; the limit is {TOPIC_LEVELS_MAX}"),
        (cast("str", b"a"), "must be a str, not bytes"),
        (cast("str", None), "must be a str, not NoneType"),
    ],
)
def test_neither_a_topic_nor_a_filter_may_be_malformed(name: str, problem: str) -> None:
    with pytest.raises(InvalidValue) as topic_error:
        check_topic(name)
    with pytest.raises(InvalidValue) as filter_error:
        check_filter(name)
    assert problem in str(topic_error.value)
    assert problem in str(filter_error.value)
    assert (topic_error.value.what, filter_error.value.what) == ("topic", "topic filter")


@pytest.mark.parametrize("topic", ["a/+", "#", "a+b", "a/b#"])
def test_a_topic_has_no_wildcard(topic: str) -> None:
    with pytest.raises(InvalidValue, match="wildcard"):
        check_topic(topic)


@pytest.mark.parametrize("topic", ["$sys/pressure", "$sys", "$inbox/7", "$"])
def test_the_topics_of_the_broker_are_reserved(topic: str) -> None:
    with pytest.raises(InvalidValue, match="the broker's"):
        check_topic(topic)
    assert check_topic(topic, reserved=True) == topic
    assert check_filter(topic) == topic
    assert is_reserved(topic)


@pytest.mark.parametrize("topic_filter", ["+", "#", "a/+", "+/b", "a/+/c", "a/#", "+/+/#", "$sys/#", "a/b"])
def test_a_filter_has_wildcards_as_whole_levels(topic_filter: str) -> None:
    assert check_filter(topic_filter) == topic_filter


@pytest.mark.parametrize(
    ("topic_filter", "problem"),
    [
        ("a+", "level 1, 'a+': a wildcard stands alone"),
        ("a/b#", "level 2, 'b#': a wildcard stands alone"),
        ("++", "level 1, '\\+\\+': a wildcard stands alone"),
        ("a/#/b", "# is level 2 of 3; it must be the last"),
        ("#/#", "# is level 1 of 2; it must be the last"),
    ],
)
def test_a_filter_with_a_misplaced_wildcard_is_refused(topic_filter: str, problem: str) -> None:
    with pytest.raises(InvalidValue, match=problem.replace("'a+'", r"'a\+'")):
        check_filter(topic_filter)


def test_the_error_for_a_long_topic_shows_only_its_beginning() -> None:
    with pytest.raises(InvalidValue) as error:
        check_topic("x" * 1_000_000)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/b", "a", False),
        ("a/b", "a/b/c", False),
        ("a", "A", False),
        ("+", "a", True),
        ("+", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+/c", "a/b/c", True),
        ("#", "a", True),
        ("#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "a/b", True),
        ("a/#", "a/b/c", True),
        ("a/#", "b", False),
        ("a/+/#", "a", False),
        ("a/+/#", "a/b", True),
        ("#", "$sys/pressure", False),
        ("+/pressure", "$sys/pressure", False),
        ("$sys/#", "$sys/pressure", True),
        ("$sys/+", "$sys/pressure", True),
        ("$sys/#", "$sys", True),
        ("a/#", "a/$b", True),
        ("+/+", "a/$b", True),
    ],
)
def test_matching_follows_mqtt(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


@given(TOPIC, TOPIC)
def test_a_plain_topic_as_filter_matches_itself_alone(first: str, second: str) -> None:
    assert matches(first, second) == (first == second)


@given(TOPIC, st.data())
def test_a_topic_matches_itself_with_levels_replaced_by_wildcards(topic: str, data: st.DataObject) -> None:
    parts = ["+" if data.draw(st.booleans()) else level for level in levels(topic)]
    kept = data.draw(st.integers(0, len(parts)))
    assert matches("/".join(parts), topic)
    assert matches("/".join([*parts[:kept], "#"]), topic)


@pytest.mark.parametrize(
    ("topic_filter", "narrower", "expected"),
    [
        ("a/#", "a/#", True),
        ("a/#", "a/+", True),
        ("a/#", "a", True),
        ("a/#", "a/+/b/#", True),
        ("a/+", "a/#", False),
        ("a/+", "a/+", True),
        ("a/b", "a/+", False),
        ("a", "a/#", False),
        ("+/b", "a/b", True),
        ("#", "+/b", True),
        ("+", "#", False),
        ("#", "$sys/#", False),
        ("$sys/#", "$sys/+", True),
    ],
)
def test_a_filter_covers_another_when_it_matches_all_that_the_other_does(
    topic_filter: str, narrower: str, expected: bool
) -> None:
    assert covers(topic_filter, narrower) is expected


def test_what_a_covered_filter_matches_the_covering_one_matches() -> None:
    """All filters of up to three levels with all topics of up to four."""
    short = [parts for count in (1, 2, 3) for parts in itertools.product("+ab", repeat=count)]
    filters = ["#", *("/".join([*parts, *rest]) for parts in short for rest in ([], ["#"]))]
    topics = ["/".join(parts) for count in (1, 2, 3, 4) for parts in itertools.product("abc", repeat=count)]
    matched = {each: {topic for topic in topics if matches(each, topic)} for each in filters}
    covered = [(wide, narrow) for wide in filters for narrow in filters if covers(wide, narrow)]
    assert len(covered) > len(filters)
    assert [pair for pair in covered if not matched[pair[1]] <= matched[pair[0]]] == []


@given(TOPIC)
def test_levels_join_to_the_topic_and_a_topic_is_no_filter(topic: str) -> None:
    assert "/".join(levels(topic)) == topic
    assert not is_filter(topic)
    assert is_filter(f"{topic}/#")


@given(st.text("ab+#/$\n\x00\ud800", max_size=8))
def test_the_rule_of_filters_in_one_line(text: str) -> None:
    try:
        accepted = check_filter(text) == text
    except InvalidValue:
        accepted = False
    assert accepted == bool(re.fullmatch(r"(\+|[ab$]+)(/(\+|[ab$]+))*(/#)?|#", text))
