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
    copied = measured.copied
    for what, text, count, size_bytes in (
        ("to_host", "from devices to host memory", copied.to_host, copied.to_host_bytes),
        ("to_device", "from host memory to devices", copied.to_device, copied.to_device_bytes),
        ("within", "within devices, into and out of what processes share", copied.within, copied.within_bytes),
    ):
        yield counter(f"device_copies_{what}", f"Copies {text}, in clients.", count)
        yield counter(f"device_copied_bytes_{what}", f"Bytes copied {text}, in clients.", size_bytes)
    yield counter(
        "device_copies_pageable",
        "Staging buffers for arrays of devices that could not be pinned, in clients: copies through them are slower.",
        copied.pageable,
    )
    yield counter(
        "device_detours",
        "Arrays that went through host memory in clients that share memory of devices; their logs say why.",
        copied.detours,
    )
    yield histogram(
        "turn",
        "From when a connection has something to read until the broker has passed it on; one of 16 such turns.",
        [],
        {(): server.turns},
    )
