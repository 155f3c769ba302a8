"""Spans by OpenTelemetry, which is optional: the only module that imports it, and only when a tracer is made.

What becomes of spans (sampled, exported, dropped) is up to the process's tracer provider. Without one they come to
nothing, at the cost of a few microseconds each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from broker.conventions import SCHEMA_URL, Attributes
from broker.errors import InvalidValue

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

SERVICE: Final = "tensorbus"
EXPORT_TIMEOUT_MS: Final = 2000
"""How long the end of a broker waits for spans to be exported."""
PRODUCER, CONSUMER, CLIENT = "PRODUCER", "CONSUMER", "CLIENT"
_INSTALL: Final = "needs OpenTelemetry: pip install 'tensorbus[otel]'"


class Operation:
    """The span of something that may go on when the call that began it has returned."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        """Made by `Tracer.operation`."""
        self._tracer = tracer
        self._span = span
        self.kept = False

    @property
    def recording(self) -> bool:
        """Whether anybody will see the span."""
        return self._span.is_recording()  # type: ignore[no-any-return]

    def keep(self) -> Operation:
        """Has the span go on until `end`."""
        self.kept = True
        return self

    def end(self, ended_ns: int | None = None, reason: str = "") -> None:
        """Ends the span, the first time that it is called.

        Args:
            ended_ns: when that was, on the wall clock; None is now.
            reason: why it has failed, if it has.
        """
        if self._span.is_recording():
            if reason:
                self._tracer.fail(self._span, reason)
            self._span.end(ended_ns)


class Tracer:
    """Makes spans. Any thread may call."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """Args:
        provider: where spans go; None takes the process's, also one that is set later.

        Raises:
            InvalidValue: OpenTelemetry is not installed.
        """
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise InvalidValue("tracing", True, _INSTALL) from error
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._provider = provider
        self._tracer = trace.get_tracer("tensorbus", tracer_provider=provider, schema_url=SCHEMA_URL)

    @contextmanager
    def span(
        self, name: str, kind: str, attributes: Attributes, carrier: Mapping[str, str] | None = None,
        *, current: bool = True,
    ) -> Iterator[None]:  # fmt: skip
        """A span that lasts as long as its context.

        Args:
            name: of the span.
            kind: PRODUCER, CONSUMER or CLIENT.
            attributes: by the names of broker/conventions.py.
            carrier: headers that may have the parent's context; without one the parent is the current span.
            current: whether spans that begin in it are its children.
        """
        context = None if carrier is None else self._propagator.extract(carrier)
        kinds = self._trace.SpanKind
        if current:
            with self._tracer.start_as_current_span(name, context, kinds[kind], attributes):
                yield
            return
        span = self._tracer.start_span(name, context, kinds[kind], attributes)
        try:
            yield
        finally:
            span.end()

    @contextmanager
    def operation(self, name: str, attributes: Attributes) -> Iterator[Operation]:
        """An INTERNAL span, a child of the current one, that ends with its context unless that keeps it."""
        span = self._tracer.start_span(name, None, self._trace.SpanKind.INTERNAL, attributes)
        operation = Operation(self, span)
        try:
            with self._trace.use_span(span, end_on_exit=False):
                yield operation
        finally:
            if not operation.kept:
                operation.end()

    def inject(self, headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
        """Headers with the context of the current span; the same ones when there is none."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return {**(headers or {}), **carrier} if carrier else headers

    def begin(
        self, name: str, attributes: Attributes, began_ns: int,
        *, carrier: Mapping[str, str] | None = None, parent: Span | None = None,
    ) -> Span:  # fmt: skip
        """An INTERNAL span that its caller ends, of something that has begun at a time of the wall clock.

        Args:
            name: of the span.
            attributes: by the names of broker/conventions.py.
            began_ns: when.
            carrier: headers that have the parent's context.
            parent: the parent itself; without either, it is the root of a trace.
        """
        from opentelemetry.context import Context

        context: Context = Context()
        if parent is not None:
            context = self._trace.set_span_in_context(parent, context)
        elif carrier is not None:
            context = self._propagator.extract(carrier, context)
        return self._tracer.start_span(name, context, self._trace.SpanKind.INTERNAL, attributes, start_time=began_ns)

    def fail(self, span: Span, reason: str) -> None:
        """Marks a span as one of something that has failed."""
        span.set_status(self._trace.StatusCode.ERROR, reason)

    def close(self) -> None:
        """Exports what waits, for a moment, if this tracer has made its own provider."""
        if self._provider is not None:
            self._provider.force_flush(EXPORT_TIMEOUT_MS)
            self._provider.shutdown()


def exporting_tracer(name: str) -> Tracer:
    """A tracer whose spans are exported by OTLP, as OTEL_* variables say; or go to the provider that is set already.

    Args:
        name: the broker's, which becomes `service.instance.id`.

    Raises:
        InvalidValue: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidValue("tracing", True, _INSTALL) from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return Tracer()
    ours = Resource.create({"service.name": SERVICE, "service.instance.id": name})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)
