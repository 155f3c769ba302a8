"""Spans of messages and collectives, from publisher to subscriber and through the broker."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import uvloop

import clients
from broker import conventions
from broker.config import ADMIN_OFF, Config
from broker.errors import InvalidValue
from broker.server import Server
from broker.telemetry import Tracer, exporting_tracer
from broker.tracing import Traces
from clients import aio
from clients.traced import TracedClient
from tests.clients.ranks import PATIENCE_S, all_together
from tests.conftest import ROOT
from tests.daemon import Daemon, run
from tests.spans import Spans, collecting, is_child, needs_opentelemetry

pytestmark = needs_opentelemetry
_numbers = itertools.count()


@contextmanager
def traced_broker() -> Iterator[str]:
    """A broker of this process that makes spans; gives its address."""
    url, started, loops = f"inproc://traced-{next(_numbers)}", threading.Event(), []

    async def serve() -> None:
        server, stop = Server(Config(listen=(url,), admin=ADMIN_OFF)), asyncio.Event()
        Traces(server.state, Tracer())
        server.start(server.config.listen)
        loops.append((asyncio.get_running_loop(), stop))
        started.set()
        await stop.wait()
        await server.stop()

    def run_broker() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run_broker)
    thread.start()
    try:
        assert started.wait(PATIENCE_S)
        yield url
    finally:
        for loop, stop in loops:
            loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)


@pytest.fixture
def spans() -> Iterator[Spans]:
    with collecting() as spans:
        yield spans


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with traced_broker() as url:
        yield url


def attributes(span: Any) -> dict[str, object]:
    return dict(span.attributes)


def test_a_message_is_one_trace_from_its_publisher_through_the_broker_to_its_handler(url: str, spans: Spans) -> None:
    handled = threading.Event()
    with (
        clients.connect(url, name="writer", tracing=True) as writer,
        clients.connect(url, name="reader", tracing=True) as reader,
    ):
        reader.subscribe("a/b", handler=lambda message: handled.set())
        writer.publish("a/b", b"12345")
        assert handled.wait(PATIENCE_S)
        publish, route = spans.one("publish a/b"), spans.one("route a/b")
        deliver, process = spans.one("deliver a/b"), spans.one("process a/b")
    assert publish.parent is None
    assert is_child(route, publish)
    assert is_child(deliver, route)
    assert is_child(process, publish)
    assert [span.kind.name for span in (publish, route, deliver, process)] == [
        "PRODUCER", "INTERNAL", "INTERNAL", "CONSUMER",
    ]  # fmt: skip
    assert publish.start_time <= route.start_time <= deliver.end_time <= route.end_time
    assert attributes(route) == {
        "messaging.system": "tensorbus", "messaging.operation.name": "route", "messaging.destination.name": "a/b",
        "messaging.client.id": "writer", "messaging.message.body.size": 5,
    }  # fmt: skip
    assert attributes(deliver)["messaging.client.id"] == "reader"
    assert attributes(publish)["messaging.operation.type"] == "send"
    assert attributes(process)["messaging.operation.type"] == "process"
    assert {span.instrumentation_scope.schema_url for span in spans.all} == {conventions.SCHEMA_URL}


def test_each_subscriber_has_a_delivery_and_a_queue_group_one_with_its_name(url: str, spans: Spans) -> None:
    with clients.connect(url, tracing=True) as writer, clients.connect(url, name="grouped") as grouped:
        readers = [clients.connect(url, name=f"reader-{number}") for number in range(3)]
        subscriptions = [reader.subscribe("many") for reader in readers]
        member = grouped.subscribe("many", queue_group="workers")
        writer.publish("many", 1)
        for subscription in (*subscriptions, member):
            subscription.next(PATIENCE_S)
        found = [attributes(span) for span in spans.named("deliver many", 4)]
        for reader in readers:
            reader.close()
    groups = {each["messaging.client.id"]: each.get("messaging.consumer.group.name") for each in found}
    assert groups == {"reader-0": None, "reader-1": None, "reader-2": None, "grouped": "workers"}


@pytest.mark.parametrize("size", [100, 50_000, 3 << 20])
def test_messages_of_every_length_are_traced(url: str, spans: Spans, size: int) -> None:
    with clients.connect(url, tracing=True) as bus, bus.subscribe("long") as subscription:
        bus.publish("long", bytes(size))
        with clients.processing(subscription.next(PATIENCE_S)):
            pass
        publish = spans.one("publish long")
        assert is_child(spans.one("route long"), publish)
        assert is_child(spans.one("process long"), publish)
        assert attributes(spans.one("route long"))["messaging.message.body.size"] == size


def test_what_is_published_while_a_message_is_processed_is_its_child(url: str, spans: Spans) -> None:
    with clients.connect(url, tracing=True) as bus, bus.subscribe("end") as end:
        bus.subscribe("begin", handler=lambda message: bus.publish("end", message.value))
        bus.publish("begin", 1)
        with clients.processing(end.next(PATIENCE_S)):
            pass
        assert is_child(spans.one("publish end"), spans.one("process begin"))
        assert len({span.context.trace_id for span in spans.all}) == 1


def test_a_request_lasts_until_its_reply_and_the_responder_is_its_child(url: str, spans: Spans) -> None:
    with clients.connect(url, tracing=True) as asker, clients.connect(url, tracing=True) as answerer:
        answerer.respond("double", lambda request: 2 * request.value)  # type: ignore[operator]
        assert asker.request("double", 21, timeout_s=PATIENCE_S).value == 42
        request, process = spans.one("request double"), spans.one("process double")
        assert is_child(process, request)
        assert is_child(spans.one("route double"), request)
        assert request.kind.name == "CLIENT"
        assert request.end_time >= process.start_time


def test_a_generator_that_responds_has_a_span_until_its_last_value(url: str, spans: Spans) -> None:
    def count(request: clients.Request) -> Iterator[object]:
        yield from range(3)

    with clients.connect(url, tracing=True) as bus:
        bus.respond("count", count)
        with clients.processing(message_of(bus, "outer")):
            assert [reply.value for reply in bus.request_many("count", timeout_s=PATIENCE_S)] == [0, 1, 2]
        assert is_child(spans.one("process count"), spans.one("process outer"))


def message_of(bus: clients.Client, topic: str) -> clients.Message:
    """A message without a trace."""
    with bus.subscribe(topic) as subscription:
        clients.Client.publish(bus, topic, None)
        return subscription.next(PATIENCE_S)


def test_a_handler_that_raises_marks_its_span(url: str, spans: Spans) -> None:
    def fail(message: clients.Message) -> None:
        raise ValueError("no")

    with clients.connect(url, tracing=True) as bus:
        bus.subscribe("fails", handler=fail)
        bus.publish("fails", 1)
        process = spans.one("process fails")
    assert process.status.status_code.name == "ERROR"
    assert process.events[0].name == "exception"


def test_a_publish_that_cannot_be_marks_its_span_and_raises_as_without_tracing(url: str, spans: Spans) -> None:
    with clients.connect(url, tracing=True) as bus:
        for wrong in ({"headers": "x"}, {"headers": {"a": 1}}, {"lane": "fast"}):
            with pytest.raises(InvalidValue):
                bus.publish("a", 1, **wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidValue):
            bus.publish("a/#", 1)
    assert [span.status.status_code.name for span in spans.all if span.name.startswith("publish")] == ["ERROR"] * 4


def test_the_asynchronous_client_makes_the_same_spans(url: str, spans: Spans) -> None:
    async def talk() -> None:
        handled = asyncio.Event()

        async def handle(message: clients.Message) -> None:
            await asyncio.sleep(0)
            handled.set()

        async def stream(request: clients.Request) -> Any:
            yield 1
            yield 2

        async with await aio.connect(url, tracing=True) as bus, await aio.connect(url, tracing=True) as other:
            await other.subscribe("a", handler=handle)
            await other.respond("echo", lambda request: request.value)
            await other.respond("stream", stream)
            await bus.publish("a", 1)
            assert (await bus.request("echo", 5)).value == 5
            assert [reply.value async for reply in bus.request_many("stream", timeout_s=PATIENCE_S)] == [1, 2]
            await asyncio.wait_for(handled.wait(), PATIENCE_S)

    asyncio.run(talk())
    assert is_child(spans.one("process a"), spans.one("publish a"))
    assert is_child(spans.one("deliver a"), spans.one("route a"))
    assert is_child(spans.one("process echo"), spans.one("request echo"))
    spans.one("process stream")


def test_a_trace_that_is_not_sampled_is_carried_on_and_costs_the_broker_nothing(url: str, spans: Spans) -> None:
    from opentelemetry import trace

    context = trace.SpanContext(1 << 100, 1 << 50, is_remote=False, trace_flags=trace.TraceFlags(0))
    with clients.connect(url, tracing=True) as bus, bus.subscribe("quiet") as subscription:
        with trace.use_span(trace.NonRecordingSpan(context)):
            for number in range(100):
                bus.publish("quiet", number)
        messages = [subscription.next(PATIENCE_S) for _ in range(100)]
    contexts = [message.headers["traceparent"].split("-") for message in messages]
    assert {(trace_id, flags) for _, trace_id, _, flags in contexts} == {(f"{1 << 100:032x}", "00")}
    assert spans.all == []


def test_a_context_that_the_application_has_put_into_the_headers_is_followed_too(url: str, spans: Spans) -> None:
    traceparent = f"00-{1 << 99:032x}-{1 << 44:016x}-01"
    with clients.connect(url) as bus, bus.subscribe("by-hand") as subscription:
        bus.publish("by-hand", 1, headers={"traceparent": traceparent})
        subscription.next(PATIENCE_S)
        route = spans.one("route by-hand")
    assert (route.context.trace_id, route.parent.span_id) == (1 << 99, 1 << 44)


def test_messages_of_a_client_without_tracing_have_no_spans_and_no_headers(url: str, spans: Spans) -> None:
    with clients.connect(url) as bus, bus.subscribe("plain") as subscription:
        assert type(bus) is clients.Client
        bus.publish("plain", 1)
        assert subscription.next(PATIENCE_S).headers == {}
    assert spans.all == []


def test_a_job_that_is_delivered_again_has_another_delivery(url: str, spans: Spans) -> None:
    with clients.connect(url, tracing=True) as bus:
        bus.declare("jobs", acknowledge=True)
        with bus.subscribe("jobs", queue_group="workers") as jobs:
            bus.publish("jobs", 1)
            jobs.next(PATIENCE_S).nack()
            jobs.next(PATIENCE_S).ack()
            assert len(spans.named("deliver jobs", 2)) == 2
        bus.declare("jobs")


@pytest.mark.parametrize("async_op", [False, True])
def test_an_all_reduce_has_one_child_for_each_rank(url: str, spans: Spans, *, async_op: bool) -> None:
    def reduce(rank: int) -> None:
        with (
            clients.connect(url, name=f"rank-{rank}", tracing=True) as bus,
            bus.group("dp", world_size=3, rank=rank, schedule="star") as group,
        ):
            reduced = group.all_reduce(np.ones(1000, np.float32), async_op=async_op)
            if async_op:
                reduced.wait(PATIENCE_S)
            group.barrier()

    all_together(*(lambda rank=rank: reduce(rank) for rank in range(3)))
    name = "all_reduce dp"
    whole = next(span for span in spans.named(name, 4) if conventions.RANK not in span.attributes)
    children = [span for span in spans.all if is_child(span, whole)]
    assert sorted(span.name for span in children) == [f"all_reduce rank {rank}" for rank in range(3)]
    assert attributes(whole)[conventions.SCHEDULE] == "star"
    assert attributes(whole)[conventions.BYTES] == 4000
    assert attributes(whole)[conventions.OUTCOME] == "done"
    assert whole.start_time == min(span.start_time for span in children)
    assert {span.end_time for span in children} == {whole.end_time}
    lateness = {attributes(span)[conventions.RANK]: attributes(span)[conventions.LATENESS_S] for span in children}
    assert min(lateness.values()) == 0  # type: ignore[type-var]
    own = [attributes(span)[conventions.RANK] for span in spans.all if span.name == name and span is not whole]
    assert sorted(own) == [0, 1, 2]  # type: ignore[type-var]


def test_a_collective_that_fails_marks_its_span_with_the_reason(url: str, spans: Spans) -> None:
    def reduce(rank: int) -> None:
        with clients.connect(url) as bus, bus.group("bad", world_size=2, rank=rank) as group:
            with pytest.raises(clients.CollectiveMismatchError):
                group.all_reduce(np.ones(10 + rank))
            group.barrier()

    all_together(lambda: reduce(0), lambda: reduce(1))
    failed = [span for span in spans.named("all_reduce bad") if span.status.status_code.name == "ERROR"]
    assert len(failed) == 1
    assert "rank 0" in failed[0].status.description


def test_tracing_is_turned_on_by_the_environment(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for text, kind in (("true", TracedClient), ("1", TracedClient), ("0", clients.Client), ("", clients.Client)):
        monkeypatch.setenv("TENSORBUS_TRACING", text)
        with clients.connect(url) as bus:
            assert type(bus) is kind
    with clients.connect(url, tracing=True) as bus:
        assert type(bus) is TracedClient
    monkeypatch.setenv("TENSORBUS_TRACING", "yes")
    with pytest.raises(InvalidValue, match="neither true nor false"):
        clients.connect(url)


def test_without_opentelemetry_tracing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for make in (Tracer, lambda: exporting_tracer("a")):
        with pytest.raises(InvalidValue, match=r"pip install 'tensorbus\[otel\]'"):
            make()


def test_nobody_who_does_not_trace_imports_opentelemetry() -> None:
    code = "import clients, broker.cli.serve, sys; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_words_are_those_of_the_conventions_of_that_version() -> None:
    attributes_module = pytest.importorskip("opentelemetry.semconv._incubating.attributes.messaging_attributes")
    schemas = pytest.importorskip("opentelemetry.semconv.schemas")
    known = {value for value in vars(attributes_module).values() if isinstance(value, str)}
    ours = {
        value for name, value in vars(conventions).items() if name.isupper() and str(value).startswith("messaging.")
    }
    assert len(ours) == 7
    assert ours <= known
    assert conventions.SCHEMA_URL in {schema.value for schema in schemas.Schemas}
    types = {each.value for each in attributes_module.MessagingOperationTypeValues}
    assert set(conventions.OPERATION_TYPES.values()) <= types


class Collector:
    """Takes spans by OTLP over HTTP and keeps them."""

    def __init__(self) -> None:
        self.resources: list[Any] = []
        self.arrived = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                with collector.arrived:
                    collector.resources += request.resource_spans
                    collector.arrived.notify_all()
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def names(self) -> list[str]:
        return [span.name for each in self.resources for scope in each.scope_spans for span in scope.spans]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE_S)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def test_the_daemon_exports_its_spans_by_otlp(collector: Collector) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_RESOURCE_ATTRIBUTES": "team=a"}

    def reduce(rank: int, url: str) -> None:
        with clients.connect(url) as bus, bus.group("dp", world_size=2, rank=rank, schedule="star") as group:
            group.all_reduce(np.ones(1000, np.float32))
            group.barrier()

    with Daemon("--tracing", "true", "--name", "one", environment=environment) as daemon:
        with clients.connect(daemon.url) as bus, bus.subscribe("a") as subscription:
            bus.publish("a", 1, headers={"traceparent": f"00-{1 << 99:032x}-{1 << 44:016x}-01"})
            bus.publish("a", 2)
            assert [subscription.next(PATIENCE_S).value for _ in range(2)] == [1, 2]
        all_together(lambda: reduce(0, daemon.url), lambda: reduce(1, daemon.url))
        assert daemon.terminate() == 0
    names = collector.names()
    assert [names.count(f"{operation} a") for operation in ("route", "deliver")] == [1, 1]
    assert {"all_reduce dp", "all_reduce rank 0", "all_reduce rank 1"} <= set(names)
    resource = {item.key: item.value.string_value for item in collector.resources[0].resource.attributes}
    assert (resource["service.name"], resource["service.instance.id"], resource["team"]) == ("tensorbus", "one", "a")


def test_a_daemon_whose_collector_is_not_there_serves_and_ends_all_the_same() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    # For a second it tries again, not for ten.
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with Daemon("--tracing", "true", environment=environment) as daemon:
        with clients.connect(daemon.url) as bus, bus.subscribe("a") as subscription:
            bus.publish("a", 1, headers={"traceparent": f"00-{1 << 99:032x}-{1 << 44:016x}-01"})
            assert subscription.next(PATIENCE_S).value == 1
        assert daemon.terminate() == 0


def test_the_settings_say_whether_the_broker_traces() -> None:
    status, text, _ = run("serve", "--show-config", "--tracing", "true")
    assert status == 0
    assert any(line.split() == ["tracing", "true", "flag", "--tracing"] for line in text.splitlines())
