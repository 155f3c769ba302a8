"""Spans of the tests' process, kept in memory: OpenTelemetry takes a provider once, so all tests share this one."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from tests.daemon import PATIENCE_S

needs_opentelemetry = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.sdk") is None,
    reason="OpenTelemetry is not installed: pip install 'tensorbus[otel]'",
)


@cache
def _exporter() -> Any:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


class Spans:
    """What has ended since a test began."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter

    @property
    def all(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str, count: int = 1) -> list[Any]:
        """The spans of a name, once there are so many."""
        deadline_s = time.monotonic() + PATIENCE_S
        while len(found := [span for span in self.all if span.name == name]) < count:
            assert time.monotonic() < deadline_s, (name, sorted(span.name for span in self.all))
            time.sleep(0.005)
        return found

    def one(self, name: str) -> Any:
        """The only span of a name."""
        (found,) = self.named(name)
        return found


@contextmanager
def collecting() -> Iterator[Spans]:
    exporter = _exporter()
    exporter.clear()
    yield Spans(exporter)


def is_child(child: Any, parent: Any) -> bool:
    """Whether a span is a child of another one."""
    return (
        child.parent is not None
        and child.parent.span_id == parent.context.span_id
        and child.context.trace_id == parent.context.trace_id
    )
