"""Metrics of times: of messages, as clients measure them, and of the broker's own turns."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from broker.metrics_families import counter, histogram
from broker.protocol.frames import Lane
from broker.server import Server


def latencies(server: Server) -> Iterator[Metric]:
    """How long messages took, and the broker's turns."""
    measured = server.state.latencies
    yield histogram(
        "publish_to_receive",
        "From publish to when a subscriber's client has read the message, by the clocks of both hosts.",
        ["lane"],
        {(lane.name.lower(),): measured.lanes[lane] for lane in Lane},
    )
    yield counter(
        "messages_before_published",
        "Messages received before they were published, by their publishers' clocks: the hosts' clocks differ.",
        measured.early,
    )
    yield histogram(
        "turn",
        "From when a connection has something to read until the broker has passed it on; one of 16 such turns.",
        [],
        {(): server.turns},
    )
