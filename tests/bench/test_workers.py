"""The figures of bench.workers: topics are spread evenly, and what follows from processor times is reckoned right."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.workers import Round, measure, table, topics_of
from broker.topics.owners import owner


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_worker_has_as_many_topics_as_any_other(workers: int) -> None:
    topics = topics_of(6, workers)
    assert len(set(topics)) == 6
    assert Counter(owner(topic, workers) for topic in topics) == dict.fromkeys(range(workers), 6 // workers)


def test_what_two_workers_can_do_is_bound_by_them_and_by_the_cores() -> None:
    # Per message 4 us of the publisher, 2 us of the broker and 6 us of the subscriber.
    rounds = [Round(1000, 0.01, 0.004, 0.002, 0.006)] * 3
    (line,) = table("single", {2: rounds}, 3)
    assert line.split() == ["single", "2", "100,000", "4.00", "2.00", "6.00", "250,000", "1,000,000"]
    (line,) = table("single", {2: rounds}, 48)
    assert line.split()[-2:] == ["1,000,000", "1,000,000"]


@pytest.mark.timeout(300)
def test_a_round_is_measured_with_each_number_of_workers() -> None:
    found = measure("single", [1, 2], pairs=2, rounds=1, round_s=0.01)
    for rounds in found.values():
        (each,) = rounds
        assert each.messages >= 200
        assert min(each.wall_s, each.publishers_s, each.broker_s, each.subscribers_s) > 0.0
