"""Settings of topics: which there are, and what each may be."""

from __future__ import annotations

import pytest

from broker.errors import InvalidValue
from broker.limits import BATCH_BYTES_MAX, LEASE_S_MAX, RETAINED_BYTES_MAX, RING_MESSAGES_MAX
from broker.topics.policy import SETTINGS, Overflow, TopicPolicy, check_declaration

GOOD = {
    "ring_messages": 0, "ring_bytes": RETAINED_BYTES_MAX, "retain": False, "overflow": "latest", "batch_bytes": 0,
    "batch_window_us": 1, "lane": "bulk", "max_message_bytes": 1, "acknowledge": True, "lease_s": 1,
    "max_deliveries": 0, "dead_letter": "dead/jobs",
}  # fmt: skip


def test_every_setting_of_a_policy_can_be_declared() -> None:
    assert tuple(GOOD) == SETTINGS
    assert check_declaration("a/#", GOOD) == GOOD


def test_the_policy_that_holds_by_itself_could_be_declared() -> None:
    settings = {name: getattr(TopicPolicy(), name) for name in SETTINGS}
    assert check_declaration("a", settings).keys() == settings.keys() - {"retain", "max_message_bytes"}


@pytest.mark.parametrize("overflow", [overflow.value for overflow in Overflow])
def test_every_overflow_can_be_declared(overflow: str) -> None:
    assert check_declaration("a", {"overflow": overflow}) == {"overflow": overflow}


def test_settings_that_are_none_are_not_set() -> None:
    assert check_declaration("a", dict.fromkeys(SETTINGS)) == {}


def test_a_lease_is_a_number_of_seconds() -> None:
    (lease_s,) = check_declaration("a", {"lease_s": 2}).values()
    assert isinstance(lease_s, float)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ring_messages", -1, "ring_messages -1: must be a number of messages from 0 to 1000000"),
        ("ring_messages", RING_MESSAGES_MAX + 1, "from 0 to 1000000"),
        ("ring_messages", True, "must be a number of messages"),
        ("ring_messages", 1.0, "must be a number of messages"),
        ("ring_bytes", RETAINED_BYTES_MAX + 1, "must be a number of bytes"),
        ("retain", 1, "retain 1: must be True or False"),
        ("overflow", "drop", "overflow 'drop': must be one of block, drop_oldest, drop_newest, latest"),
        ("batch_bytes", BATCH_BYTES_MAX + 1, "must be a number of bytes from 0 to 524288"),
        ("batch_window_us", -1, "must be a number of microseconds from 0 to 1000000"),
        ("lane", "fast", "lane 'fast': must be one of control, default, bulk"),
        ("max_message_bytes", 0, "must be a number of bytes from 1"),
        ("acknowledge", "yes", "must be True or False"),
        ("lease_s", 0, "must be a number of seconds above 0"),
        ("lease_s", float("nan"), "must be a number of seconds above 0"),
        ("lease_s", LEASE_S_MAX * 2, "must be a number of seconds above 0 and up to 604800"),
        ("max_deliveries", -1, "must be a number of deliveries"),
        ("dead_letter", "a/#", "must be a topic without wildcards"),
        ("dead_letter", "$sys/x", "must be a topic without wildcards"),
        ("dead_letter", [], "must be a topic without wildcards"),
        ("ring_message", 1, "'ring_message': unknown; did you mean ring_messages?"),
        ("zebra", 1, "'zebra': unknown; the settings are ring_messages, ring_bytes"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(name: str, value: object, words: str) -> None:
    with pytest.raises(InvalidValue) as error:
        check_declaration("a", {name: value})
    assert words in str(error.value)


@pytest.mark.parametrize("topic_filter", ["", "a//b", "a/#/b", "$sys/#", "$inbox/1", "$dead", 7])
def test_a_filter_that_cannot_be_is_refused(topic_filter: str) -> None:
    with pytest.raises(InvalidValue, match="topic filter"):
        check_declaration(topic_filter, {"ring_messages": 1})


def test_dead_letters_may_have_a_policy() -> None:
    assert check_declaration("$dead/#", {"ring_messages": 5, "dead_letter": "$dead/all"})
