"""Metrics as they are exposed: their names and the shape of histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from broker.histograms import BOUNDS_S, Histogram

_BOUNDS: Final = [*map(str, BOUNDS_S), "+Inf"]


def counter(name: str, text: str, value: float) -> Metric:
    """What only grows; the exposition adds `_total` to the name."""
    return CounterMetricFamily(f"tensorbus_{name}", text, value)


def gauge(name: str, text: str, value: float) -> Metric:
    """What is so at this moment."""
    return GaugeMetricFamily(f"tensorbus_{name}", text, value)


def histogram(name: str, text: str, labels: Sequence[str], histograms: Mapping[tuple[str, ...], Histogram]) -> Metric:
    """Times, in seconds, by the values of labels."""
    family = HistogramMetricFamily(f"tensorbus_{name}_seconds", text, labels=labels)
    for values, each in histograms.items():
        buckets = list(zip(_BOUNDS, map(float, accumulate(each.counts)), strict=True))
        family.add_metric(values, buckets, each.sum_ns / 1e9)
    return family
