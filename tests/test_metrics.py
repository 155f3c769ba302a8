"""Metrics: what the broker counts, in Prometheus' words, and that what only grows never falls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import clients
from broker.collectives import shm
from broker.config import Config
from broker.metrics import Metrics
from broker.server import Server
from tests.holding_back import publish_until_held_back

from .clients.ranks import all_together
from .daemon import PATIENCE_S, Daemon

needs_engine = pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")
Samples = dict[tuple[str, ...], float]


def samples_of(text: str) -> Samples:
    """Values by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(daemon: Daemon) -> Samples:
    with urlopen(f"{daemon.admin_url}/metrics", timeout=PATIENCE_S) as response:
        return samples_of(response.read().decode())


def in_progress(daemon: Daemon) -> list[dict[str, Any]]:
    """The operations in progress of all groups."""
    with urlopen(f"{daemon.admin_url}/api/v1/groups", timeout=PATIENCE_S) as response:
        return [each for group in json.load(response)["groups"] for each in group["operations"]]


def wait_until(condition: Callable[[], bool]) -> None:
    """Asks again and again until something is so."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come to that"


def wait_for_event(watch: clients.Subscription, event: str) -> None:
    """Waits until the broker has said something of a group."""
    while watch.next(PATIENCE_S).value["event"] != event:
        pass


def wait_for_end(watch: clients.Subscription, name: str) -> None:
    """Waits until the broker says that the session of this name is over."""
    ended = {"event": "", "name": ""}
    while (ended["event"], ended["name"]) != ("closed", name):
        ended = watch.next(PATIENCE_S).value


def scrape_while_three_messages_pass(daemon: Daemon) -> Samples:
    with (
        clients.connect(daemon.url, name="reader") as reader,
        reader.subscribe("metrics/#") as subscription,
        clients.connect(daemon.url, name="writer") as writer,
    ):
        for number in range(3):
            writer.publish(f"metrics/{number}", b"12345")
        assert [subscription.next(PATIENCE_S).value for _ in range(3)] == [b"12345"] * 3
        return scrape(daemon)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as daemon:
        yield daemon


def test_published_and_delivered_messages_are_counted_and_survive_their_sessions(daemon: Daemon) -> None:
    before = scrape(daemon)
    with clients.connect(daemon.url, name="watcher") as watcher, watcher.subscribe("$sys/sessions") as watch:
        during = scrape_while_three_messages_pass(daemon)
        wait_for_end(watch, "reader")
        after = scrape(daemon)

    def growth(name: str, *labels: str) -> float:
        return during[(name, *labels)] - before[(name, *labels)]

    assert growth("tensorbus_messages_published_total") == 3
    assert growth("tensorbus_published_bytes_total") == 15
    assert growth("tensorbus_messages_delivered_total") >= 3
    assert growth("tensorbus_sessions_opened_total") == 3
    assert growth("tensorbus_topics") == 3
    assert during["tensorbus_sessions",] == 3
    assert during["tensorbus_subscriptions",] == 2
    assert growth("tensorbus_retained_bytes") >= 15
    assert growth("tensorbus_received_bytes_total") > 15
    assert growth("tensorbus_sent_bytes_total") > 15
    counters = [key for key in before if key[0].endswith("_total") and key[0].startswith("tensorbus_")]
    assert len(counters) == 31
    assert [key for key in counters if not before[key] <= during[key] <= after[key]] == []


def test_dropped_messages_are_counted_by_policy_and_survive_their_subscription(daemon: Daemon) -> None:
    key = ("tensorbus_messages_dropped_total", "drop_newest")
    before = scrape(daemon)[key]
    with clients.connect(daemon.url) as bus:
        subscription = bus.subscribe("dropped", overflow="drop_newest", queue_messages=1)
        for number in range(5):
            bus.publish("dropped", number)
        bus.flush()
        during = scrape(daemon)[key]
        subscription.close()
        after = scrape(daemon)[key]
    assert during - before == 4
    assert after == during


def test_what_a_client_drops_itself_is_counted_too(daemon: Daemon) -> None:
    key = ("tensorbus_messages_dropped_total", "drop_oldest")
    before = scrape(daemon)[key]
    with clients.connect(daemon.url) as bus:
        subscription = bus.subscribe("dropped", overflow="drop_oldest", queue_messages=1)
        for number in range(5):
            bus.publish("dropped", number)
        bus.flush()
        subscription.close()
        assert scrape(daemon)[key] - before == subscription.dropped == 4


def test_publishers_that_wait_are_visible(daemon: Daemon) -> None:
    before = scrape(daemon)
    names = ("tensorbus_publishers_held_back", "tensorbus_subscriptions_blocking", "tensorbus_publisher_waits_total")
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url, name="reader") as reader:
        subscription = reader.subscribe("slow", queue_messages=1)
        publish_until_held_back(bus, "slow", urgent=True)
        during = scrape(daemon)
        subscription.close()
        after = scrape(daemon)
    assert [during[name,] - before[name,] for name in names] == [1, 1, 1]
    assert [after[name,] - before[name,] for name in names] == [0, 0, 1]


def test_every_16th_turn_of_the_broker_is_timed(daemon: Daemon) -> None:
    before = scrape(daemon)["tensorbus_turn_seconds_count",]
    with clients.connect(daemon.url) as bus:
        for _ in range(64):
            bus.flush()
    turns = scrape(daemon)["tensorbus_turn_seconds_count",] - before
    assert 4 <= turns <= 8


def test_what_waits_and_the_room_that_is_left_are_visible(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url) as reader:
        before = scrape(daemon)
        subscription = reader.subscribe("waiting", queue_messages=10)
        room = scrape(daemon)
        for _ in range(15):
            bus.publish("waiting", bytes(100), urgent=True)
        bus.flush()
        during = scrape(daemon)
        assert [len(subscription.next(PATIENCE_S).value) for _ in range(15)] == [100] * 15
        subscription.close()
        after = scrape(daemon)
    assert room["tensorbus_subscriber_credit_messages",] - before["tensorbus_subscriber_credit_messages",] == 10
    assert during["tensorbus_waiting_messages",] == during["tensorbus_deepest_queue_messages",] == 5
    assert during["tensorbus_waiting_bytes",] == 500
    assert during["tensorbus_subscriptions_without_credit",] == 1
    assert 0 < during["tensorbus_publisher_credit_ratio",] < 1
    assert after["tensorbus_waiting_messages",] == after["tensorbus_subscriptions_without_credit",] == 0


@pytest.mark.parametrize("schedule", [pytest.param("shm", marks=needs_engine), "star"])
def test_all_reduces_are_counted_and_timed_with_the_skew_of_their_ranks(tmp_path: Path, schedule: str) -> None:
    with Daemon(listen=(f"unix://{tmp_path}/bus",)) as daemon:
        check_that_all_reduces_are_counted(daemon, schedule)


def check_that_all_reduces_are_counted(daemon: Daemon, schedule: str) -> None:
    def run(bus: clients.Client, rank: int) -> None:
        group = bus.group(f"timed-{schedule}", world_size=2, rank=rank, schedule=schedule)
        for _ in range(3):
            group.all_reduce(np.ones(1 << 18, np.float32))
        group.barrier()

    before = scrape(daemon)
    with clients.connect(daemon.url) as one, clients.connect(daemon.url) as other:
        all_together(lambda: run(one, 0), lambda: run(other, 1))
        after = scrape(daemon)

    def growth(name: str, *labels: str) -> float:
        return after[(f"tensorbus_{name}", *labels)] - before[(f"tensorbus_{name}", *labels)]

    assert growth("collectives_total", "done") >= 4
    assert growth("collective_seconds_count", "all_reduce", schedule) == 3
    assert growth("collective_seconds_sum", "all_reduce", schedule) > 0
    assert growth("collective_skew_seconds_count") >= 4
    assert growth("group_generations_total") >= 1


def test_a_group_that_does_not_move_and_a_rank_that_is_late_are_visible(daemon: Daemon) -> None:
    with (
        clients.connect(daemon.url) as bus,
        clients.connect(daemon.url) as late,
        bus.subscribe("$sys/groups/+") as watch,
    ):
        one, other = all_together(
            lambda: bus.group("stuck", world_size=2, rank=0, schedule="star"),
            lambda: late.group("stuck", world_size=2, rank=1, schedule="star"),
        )
        for _ in range(3):
            began = one.all_reduce(np.ones(4), async_op=True)
            wait_until(lambda: any(each["waiting_s"] > 0.005 for each in in_progress(daemon)))
            other.all_reduce(np.ones(4))
            began.wait(PATIENCE_S)
        wait_for_event(watch, "stragglers")
        assert scrape(daemon)["tensorbus_group_lateness_seconds",] > 0
        began = one.all_reduce(np.ones(4), async_op=True)
        wait_for_event(watch, "stuck")
        assert scrape(daemon)["tensorbus_groups_stuck",] == 1
        other.all_reduce(np.ones(4))
        began.wait(PATIENCE_S)
        wait_until(lambda: scrape(daemon)["tensorbus_groups_stuck",] == 0)


def test_groups_and_their_members_are_counted(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        group = bus.group("alone", world_size=1, rank=0)
        during = scrape(daemon)
        group.leave()
        bus.flush()
        after = scrape(daemon)
    assert (during["tensorbus_groups",], during["tensorbus_group_members",]) == (1, 1)
    assert (after["tensorbus_groups",], after["tensorbus_group_members",]) == (0, 0)


def test_what_the_broker_itself_announces_is_not_counted_as_published(daemon: Daemon) -> None:
    before = scrape(daemon)["tensorbus_messages_published_total",]
    with clients.connect(daemon.url) as bus:
        bus.flush()
        assert scrape(daemon)["tensorbus_messages_published_total",] == before


def test_no_label_names_a_topic_or_a_client_by_default(daemon: Daemon) -> None:
    with clients.connect(daemon.url, name="a-client") as bus:
        bus.publish("a-topic", 1)
        bus.flush()
        labels = {label for key in scrape(daemon) for label in key[1:]}
    assert "drop_oldest" in labels
    assert labels.isdisjoint({"a-topic", "a-client"})


def test_topics_are_labels_where_the_configuration_says_so() -> None:
    with (
        Daemon("--metrics-topic-labels", "true") as daemon,
        clients.connect(daemon.url) as bus,
        bus.subscribe("a/topic"),
    ):
        bus.publish("a/topic", 1)
        bus.publish("a/topic", 2)
        bus.flush()
        by_topic = {
            key[1:]: value
            for key, value in scrape(daemon).items()
            if key[0] == "tensorbus_topic_messages_published_total"
        }
    assert by_topic == {("", "a/topic"): 2}


def test_a_session_that_has_not_said_hello_is_no_session_yet() -> None:
    async def counted() -> Samples:
        server = Server(Config(listen=("inproc://unused",)))
        server.state.connect("somebody", 0)
        text, _ = Metrics(server).render()
        return samples_of(text.decode())

    samples = asyncio.run(counted())
    assert samples["tensorbus_sessions",] == 0
    assert samples["tensorbus_sessions_opened_total",] == 0


def test_build_uptime_and_process_are_told(daemon: Daemon) -> None:
    samples = scrape(daemon)
    assert samples["tensorbus_uptime_seconds",] > 0
    assert samples["process_resident_memory_bytes",] > 1e6
    assert [value for key, value in samples.items() if key[0] == "tensorbus_build_info"] == [1]


def test_a_scraper_that_asks_for_openmetrics_gets_it() -> None:
    async def rendered() -> tuple[bytes, str]:
        accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
        return Metrics(Server(Config(listen=("inproc://unused",)))).render(accept)

    text, content_type = asyncio.run(rendered())
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
