"""Metrics: what the broker counts, in Prometheus' words, and that what only grows never falls."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

import clients
from broker.config import Config
from broker.metrics import Metrics
from broker.server import Server

from .daemon import PATIENCE_S, Daemon

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
    assert len(counters) == 19
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
    def publish_for_ever(bus: clients.Client) -> None:
        while True:
            bus.publish("slow", 0, urgent=True, timeout_s=0.2)

    before = scrape(daemon)
    names = ("tensorbus_publishers_held_back", "tensorbus_subscriptions_blocking", "tensorbus_publisher_waits_total")
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url, name="reader") as reader:
        subscription = reader.subscribe("slow", queue_messages=1)
        with pytest.raises(clients.TimeoutError):
            publish_for_ever(bus)
        during = scrape(daemon)
        subscription.close()
        after = scrape(daemon)
    assert [during[name,] - before[name,] for name in names] == [1, 1, 1]
    assert [after[name,] - before[name,] for name in names] == [0, 0, 1]


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
