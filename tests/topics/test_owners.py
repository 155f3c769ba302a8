"""Which worker has a topic or a group: the same one in every process, and about as many for each."""

from __future__ import annotations

from collections import Counter
from zlib import crc32

import pytest

from broker.topics.owners import HOME, owner, owners


def test_the_owner_is_what_the_protocol_says() -> None:
    # CRC-32 of "123456789", its check value in every description of it.
    assert crc32(b"123456789") == 0xCBF43926
    assert [owner("123456789", workers) for workers in (1, 2, 3, 7)] == [0xCBF43926 % each for each in (1, 2, 3, 7)]
    assert owner("gradients/größe", 1000) == crc32("gradients/größe".encode()) % 1000


@pytest.mark.parametrize("workers", [2, 3, 4, 7, 16])
@pytest.mark.parametrize("name", ["gradients/{}", "metrics/trainer-{}/loss", "{}", "activations/layer{}/weight"])
def test_names_that_are_alike_are_spread(name: str, workers: int) -> None:
    topics = 1000 * workers
    counts = Counter(owner(name.format(number), workers) for number in range(topics))
    assert set(counts) == set(range(workers))
    assert max(counts.values()) < 1200
    assert min(counts.values()) > 800


@pytest.mark.parametrize("name", ["jobs", "a/b/c", "größe"])
def test_what_is_said_about_a_name_lies_with_it(name: str) -> None:
    for workers in (2, 3, 64):
        assert owner(f"$dead/{name}", workers) == owner(name, workers)
        assert owner(f"$sys/groups/{name}", workers) == owner(name, workers)
        assert owners(f"$sys/groups/{name}", workers) == (owner(name, workers),)
        assert owners(name, workers) == (owner(name, workers),)


@pytest.mark.parametrize(
    "topic_filter", ["#", "+", "a/+", "a/#", "$dead/#", "$sys/groups/#", "$sys/#", "$sys/pressure"]
)
def test_a_filter_of_several_topics_is_about_all_workers(topic_filter: str) -> None:
    assert list(owners(topic_filter, 3)) == [0, 1, 2]


def test_who_is_there_is_the_word_of_the_worker_that_everybody_has() -> None:
    assert owners("$sys/sessions", 5) == (HOME,)


def test_what_cannot_be_a_topic_is_refused_elsewhere() -> None:
    for name in ("", "\ud800", "a//b"):
        assert 0 <= owner(name, 3) < 3
