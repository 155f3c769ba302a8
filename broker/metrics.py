"""Metrics in the words of Prometheus: base units, `_total` for what only grows.

The broker counts in plain integers; they are read when somebody scrapes, so that metrics cost nothing in between. No
label ever holds the name of a client. Topics are labels only where the configuration says so, because each makes a time
series of its own.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.collectives.late import LateTotals
from broker.metrics_collectives import collectives
from broker.metrics_families import counter as _counter
from broker.metrics_families import gauge as _gauge
from broker.metrics_latencies import latencies
from broker.metrics_queues import queues
from broker.server import Server
from broker.state import BrokerState
from broker.state.census import Census
from broker.state.tenants import Tenant
from broker.state.topics import TopicRecord
from broker.state.totals import Totals
from broker.version import version

LONG_S: Final = 0.02
"""A scrape that takes more of the broker's processor time than this is not made again at once."""
SHARE: Final = 0.02
"""Of the broker's time that scrapes may take, if they take long."""


def sessions_open(tenants: Iterable[Tenant]) -> int:
    """Sessions that have said hello."""
    return sum(1 for tenant in tenants for record in tenant.sessions.values() if record.name)


def subscriptions_open(tenants: Iterable[Tenant]) -> int:
    """Subscriptions that clients have asked for; the inbox of each session is none."""
    records = (record for tenant in tenants for record in tenant.sessions.values())
    return sum(1 for record in records for number in record.subscriptions if number)


def public_topics(tenants: Iterable[Tenant]) -> Iterator[tuple[Tenant, TopicRecord]]:
    """The topics of clients with their tenants, without the broker's own and the inboxes: those of this moment."""
    now = [(tenant, list(tenant.router.topics.values())) for tenant in tenants]
    return ((tenant, topic) for tenant, topics in now for topic in topics if not topic.name.startswith("$"))


class Metrics:
    """The metrics of one server, in a registry of their own. The server's thread may call.

    Between two messages that it routes, a broker may be kept by one scrape, and not by many: one that has taken long,
    of very many topics, is told again for a while.
    """

    def __init__(self, server: Server) -> None:
        self._told: dict[str, tuple[float, bytes]] = {}
        self._registry = CollectorRegistry()
        settings = server.state.settings
        for collector in (_BrokerCollector(server), ProcessCollector(registry=None), PlatformCollector(registry=None)):
            # One of several workers says which: they are scraped one by one, as one broker.
            self._registry.register(_OfWorker(collector, settings.worker) if settings.workers else collector)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics of this moment; or what was told before, for 50 times as long as that has taken, if it was long.

        Args:
            accept: the scraper's Accept header, which chooses between Prometheus text and OpenMetrics.

        Returns:
            The text and its content type.
        """
        encode, content_type = choose_encoder(accept)
        fresh_until_s, text = self._told.get(content_type, (0.0, b""))
        if time.monotonic() < fresh_until_s:
            return text, content_type
        # Processor time: on a busy machine the clock counts what others take.
        started_s = time.thread_time()
        text = encode(self._registry)
        taken_s = time.thread_time() - started_s
        if taken_s > LONG_S:
            self._told[content_type] = time.monotonic() + taken_s / SHARE, text
        return text, content_type


class _OfWorker(Collector):
    """Metrics with the label `worker`."""

    def __init__(self, collector: Collector, worker: int) -> None:
        self._collector = collector
        self._worker = {"worker": str(worker)}

    def collect(self) -> Iterable[Metric]:
        """Yields every metric of the other collector."""
        for metric in self._collector.collect():
            metric.samples = [sample._replace(labels=self._worker | sample.labels) for sample in metric.samples]
            yield metric


class _BrokerCollector(Collector):
    """Reads the server's state when it is asked."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterable[Metric]:
        """Yields every metric of the broker."""
        server = self._server
        uptime_ns = time.monotonic_ns() - server.started_ns
        yield _gauge("uptime_seconds", "Time since the broker started.", uptime_ns / 1e9)
        build = {"version": version(), "python": platform.python_version()}
        yield InfoMetricFamily("tensorbus_build", "What runs here.", build)
        census = Census()
        totals = server.state.totals(census)
        yield from _counters(server.state, totals)
        yield from _gauges(server.state, census)
        yield from queues(server.state)
        yield from collectives(server.state, time.monotonic_ns())
        yield from latencies(server)
        if server.config.metrics_topic_labels:
            yield _by_topic(server.state)


def _counters(state: BrokerState, totals: Totals) -> Iterator[Metric]:
    yield _counter("sessions_opened", "Sessions that said hello.", state.sessions_opened)
    yield _counter("messages_published", "Messages that clients published.", totals.published_messages)
    yield _counter("published_bytes", "Payload and headers of the messages published.", totals.published_bytes)
    yield _counter("messages_delivered", "Messages handed to subscribers.", totals.delivered_messages)
    yield _counter("received_bytes", "Bytes that came from clients, all kinds together.", totals.received_bytes)
    yield _counter("sent_bytes", "Bytes that went to clients, all kinds together.", totals.sent_bytes)
    dropped = CounterMetricFamily(
        "tensorbus_messages_dropped", "Messages that subscribers lost, by overflow policy.", labels=["overflow"]
    )
    yield _counter(
        "messages_refused", "Messages that were longer than their topic's policy allows.", totals.refused_messages
    )
    tenants = state.tenants.values()
    late = LateTotals()
    for tenant in tenants:
        late.add(tenant.groups.late_totals)
    yield _counter("quorum_operations", "Collectives that did not have to wait for all ranks.", late.operations)
    yield _counter("contributions_missed", "Contributions that such collectives ended without.", late.missed)
    yield _counter("contributions_carried", "Late ones that were kept for the next collective.", late.carried)
    yield _counter("contributions_added", "Kept ones that a later collective has added.", late.added)
    yield _counter("contributions_dropped", "Late ones that were dropped.", late.dropped)
    yield _counter(
        "publisher_waits", "Times that a publisher was held back.", sum(each.pressure.waits for each in tenants)
    )
    for overflow, count in totals.dropped_messages.items():
        dropped.add_metric([overflow.value], count)
    yield dropped
    yield _counter(
        "messages_redelivered", "Jobs of queue groups that were given out again.", totals.redelivered_messages
    )
    yield _counter(
        "messages_dead_lettered",
        "Jobs that went to a dead-letter topic after too many deliveries.",
        totals.dead_messages,
    )


def _gauges(state: BrokerState, census: Census) -> Iterator[Metric]:
    tenants = state.tenants.values()
    groups = [group for tenant in tenants for group in tenant.groups.by_number.values()]
    yield _gauge("sessions", "Sessions that are open.", sessions_open(tenants))
    yield _gauge("topics", "Topics of clients.", census.topics)
    yield _gauge("subscriptions", "Subscriptions of clients.", subscriptions_open(tenants))
    yield _gauge("groups", "Collective groups.", len(groups))
    yield _gauge("group_members", "Members of all collective groups.", sum(len(group.ranks) for group in groups))
    yield _gauge("retained_bytes", "What topics keep for replay.", census.retained_bytes)
    yield _gauge(
        "publishers_held_back",
        "Publishers that wait for a slow subscriber, on each of their topics.",
        census.held_back,
    )
    yield _gauge("memory_used_bytes", "Of the broker's own, at the last look.", state.watermark.used_bytes)
    yield _gauge("memory_limit_bytes", "What it may use at most, at the last look.", state.watermark.limit_bytes)
    yield _gauge("memory_level", "0, 1 pushes back, 2 refuses, 3 lets go.", int(state.watermark.level))
    yield _gauge("half_open_connections", "Connections that have yet to say hello.", len(state.arrivals.half_open))
    jobs = [work.queue for work in census.works]
    yield _gauge("jobs_waiting", "Jobs that wait for a worker.", sum(queue.waiting + queue.delayed for queue in jobs))
    yield _gauge("jobs_leased", "Jobs that workers have and did not settle.", sum(queue.leased for queue in jobs))


def _by_topic(state: BrokerState) -> Metric:
    published = CounterMetricFamily(
        "tensorbus_topic_messages_published", "Messages that clients published, by topic.", labels=["topic", "tenant"]
    )
    for tenant, topic in public_topics(state.tenants.values()):
        published.add_metric([topic.name, tenant.name], topic.published)
    return published
