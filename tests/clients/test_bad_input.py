"""What a user or a stranger does wrong: a clear error for them, nothing lost for the others."""

from __future__ import annotations

import socket
import struct

import numpy as np
import pytest

import clients
from broker.protocol.bodies import Hello
from broker.protocol.frames import HEADER, Kind
from broker.protocol.handshake import MAGIC, PREAMBLE, encode_greeting
from tests.clients.serving import ServingThread
from tests.loopback import refusing

PATIENCE_S = 60.0


def strange_connection(broker: ServingThread) -> socket.socket:
    host, _, port = broker.url.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def read_all(stranger: socket.socket) -> bytes:
    data = b""
    while part := stranger.recv(65_536):
        data += part
    return data


def header(kind: int, *, body_bytes: int = 0, payload_bytes: int = 0, number: int = 0, lane: int = 1) -> bytes:
    return HEADER.pack(kind, 0, lane, 0, number, 0, 0, 0, body_bytes, payload_bytes, 0, 0, 0)


STRANGE = {
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400"),
    "random bytes": (bytes(range(7, 200)), b"This is a tensorbus broker"),
    "another version": (PREAMBLE.pack(MAGIC, 7, 9, 0), b"no common version"),
    "a hello over the limit": (PREAMBLE.pack(MAGIC, 1, 1, 1 << 30), b"over the limit of 65536"),
    "a hello that is not MessagePack": (PREAMBLE.pack(MAGIC, 1, 1, 4) + b"\xc1\xc1\xc1\xc1", b"malformed hello"),
}
AFTER_HELLO = {
    "an unknown kind": (header(99), b"unknown kind 99"),
    "an unknown lane": (header(Kind.PING, lane=7), b"unknown lane 7"),
    "an oversized payload": (header(Kind.PUBLISH, payload_bytes=1 << 31), b"over the limit of 1048576"),
    "an oversized body": (header(Kind.SUBSCRIBE, body_bytes=1 << 30), b"over the limit of 262144"),
    "malformed MessagePack": (header(Kind.SUBSCRIBE, body_bytes=3) + b"\xc1\xc1\xc1", b"malformed Subscribe"),
    "a publish without a topic": (header(Kind.PUBLISH, number=5), b"which no TOPIC has named"),
    "a chunk without a stream": (header(Kind.CHUNK), b"which no PUBLISH has opened"),
    "a reserved topic": (header(Kind.TOPIC, body_bytes=16) + b"\x81\xa4name\xa9$sys/fake", b"are the broker's"),
    "a frame of the broker's": (header(Kind.DELIVER), b"DELIVER frame from a client"),
    "a contribution to no group": (header(Kind.CONTRIBUTE, number=3), b"has not joined"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_stranger_is_told_what_this_port_is(tcp_broker: ServingThread, case: str) -> None:
    sent, answer = STRANGE[case]
    with clients.connect(tcp_broker.url, name="other") as bus, strange_connection(tcp_broker) as stranger:
        subscription = bus.subscribe("fine")
        stranger.sendall(sent)
        assert answer in read_all(stranger)
        bus.publish("fine", 1)
        assert subscription.next(PATIENCE_S).value == 1


@pytest.mark.parametrize("case", AFTER_HELLO)
def test_a_client_that_breaks_the_protocol_is_told_why_and_closed(tcp_broker: ServingThread, case: str) -> None:
    sent, reason = AFTER_HELLO[case]
    with clients.connect(tcp_broker.url, name="other") as bus, strange_connection(tcp_broker) as stranger:
        subscription = bus.subscribe("fine")
        stranger.sendall(encode_greeting(Hello("stranger")) + sent)
        assert reason in read_all(stranger)
        bus.publish("fine", 1)
        assert subscription.next(PATIENCE_S).value == 1


def test_a_peer_that_ends_in_the_middle_of_a_frame_harms_nobody(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url, name="other") as bus:
        subscription = bus.subscribe("fine")
        with strange_connection(tcp_broker) as stranger:
            stranger.sendall(encode_greeting(Hello("stranger")) + header(Kind.PUBLISH, payload_bytes=500_000) + b"abc")
        bus.publish("fine", 1)
        assert subscription.next(PATIENCE_S).value == 1


@pytest.mark.parametrize(
    ("topic", "problem"),
    [
        ("", "empty"),
        ("a//b", "level 2 is empty"),
        ("/a", "level 1 is empty"),
        ("a/+/b", "wildcard"),
        ("a/#", "wildcard"),
        ("a\x00b", "control character"),
        ("$sys/sessions", "are the broker's"),
        ("x" * 600, "512"),
    ],
)
def test_an_invalid_topic_is_refused_before_anything_is_sent(
    tcp_broker: ServingThread, topic: str, problem: str
) -> None:
    with clients.connect(tcp_broker.url) as bus:
        with pytest.raises(clients.InvalidValue, match=problem):
            bus.publish(topic, 1)
        bus.publish("fine", 1, ack="accepted")


@pytest.mark.parametrize("topic_filter", ["", "a/#/b", "a+/b", "a//b", "#/a"])
def test_an_invalid_filter_is_refused(tcp_broker: ServingThread, topic_filter: str) -> None:
    with clients.connect(tcp_broker.url) as bus, pytest.raises(clients.InvalidValue, match="filter"):
        bus.subscribe(topic_filter)


@pytest.mark.parametrize(
    "options",
    [
        {"overflow": "explode"},
        {"queue_messages": 0},
        {"queue_bytes": 5},
        {"replay": "yesterday"},
        {"replay": -1},
        {"queue_group": ""},
    ],
    ids=str,
)
def test_an_impossible_option_is_refused(tcp_broker: ServingThread, options: dict[str, object]) -> None:
    with clients.connect(tcp_broker.url) as bus, pytest.raises(clients.InvalidValue):
        bus.subscribe("fine", **options)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.array([{}, None]), "need pickle"),
        ({"inner": np.array([None])}, "need pickle"),
        (object(), "type 'object'"),
        (1j, "cannot be sent"),
        (2**70, "cannot be sent"),
        (np.array(["text"]), "cannot be sent"),
    ],
    ids=["object array", "nested object array", "object", "complex", "huge int", "array of texts"],
)
def test_a_value_that_cannot_travel_is_refused(tcp_broker: ServingThread, value: object, problem: str) -> None:
    with clients.connect(tcp_broker.url) as bus:
        with pytest.raises(clients.InvalidValue, match=problem):
            bus.publish("fine", value)
        bus.publish("fine", 1, ack="accepted")


def test_impossible_publish_options_are_refused(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url) as bus:
        for options in ({"lane": "fast"}, {"ack": "yes"}, {"headers": {"step": 1}}):
            with pytest.raises(clients.InvalidValue):
                bus.publish("fine", 1, **options)
        with pytest.raises(clients.LimitExceeded, match="headers_bytes_max"):
            bus.publish("fine", 1, headers={"big": "x" * 40_000})


@pytest.mark.parametrize("url", ["pigeon://x", "tcp://", "tcp://host", "tcp://host:99999", "unix://", "nonsense"])
def test_an_address_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(clients.InvalidValue):
        clients.connect(url)


def test_a_refused_connection_names_the_address_and_the_reason() -> None:
    with refusing() as (host, port), pytest.raises(clients.ConnectError, match=f"tcp://{host}:{port}"):
        clients.connect(f"tcp://{host}:{port}", connect_timeout_s=2.0)


def test_a_server_that_is_no_broker_is_named_as_such() -> None:
    with socket.socket() as web:
        web.bind(("127.0.0.1", 0))
        web.listen()
        url = f"tcp://127.0.0.1:{web.getsockname()[1]}"
        with pytest.raises(clients.ConnectError, match="no tensorbus broker answered"):
            clients.connect(url, connect_timeout_s=0.3)


def test_everything_after_close_raises_connection_closed(tcp_broker: ServingThread) -> None:
    bus = clients.connect(tcp_broker.url)
    subscription = bus.subscribe("fine")
    group = bus.group("alone", world_size=1, rank=0)
    bus.close()
    bus.close()
    for call in (
        lambda: bus.publish("fine", 1),
        lambda: bus.publish("fine", np.zeros(100_000)),
        lambda: bus.publish("fine", 1, ack="accepted"),
        bus.flush,
        lambda: bus.subscribe("fine"),
        lambda: bus.request("fine"),
        lambda: bus.group("again", world_size=1),
        lambda: group.all_reduce(np.ones(1)),
        subscription.next,
    ):
        with pytest.raises(clients.ConnectionClosed):
            call()
    subscription.close()


def test_too_many_sessions_are_refused_with_the_limit() -> None:
    with ServingThread("tcp://127.0.0.1:0", sessions_max=2) as broker:
        first, second = clients.connect(broker.url), clients.connect(broker.url)
        with pytest.raises(clients.ConnectError, match="sessions_max"):
            clients.connect(broker.url)
        first.close()
        second.close()
        broker.wait_until_idle()
        with clients.connect(broker.url) as bus:
            bus.publish("fine", 1, ack="accepted")


def test_too_many_subscriptions_are_refused_with_the_limit() -> None:
    with (
        ServingThread("tcp://127.0.0.1:0", subscriptions_per_session_max=3) as broker,
        clients.connect(broker.url) as bus,
    ):
        subscriptions = [bus.subscribe(f"fine/{number}") for number in range(3)]
        with pytest.raises(clients.LimitExceeded, match="subscriptions_per_session_max"):
            bus.subscribe("one/more")
        subscriptions.pop().close()
        bus.subscribe("one/more").close()


def test_a_length_that_lies_about_an_array_is_an_error_where_it_is_read(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url) as bus, strange_connection(tcp_broker) as stranger:
        subscription = bus.subscribe("lying")
        body = b"\x81\xa6tensor\x82\xa5dtype\xa7float64\xa5shape\x91\x64"
        topic = b"\x81\xa4name\xa5lying"
        frames = HEADER.pack(Kind.TOPIC, 0, 0, 0, 1, 0, 0, 0, len(topic), 0, 0, 0, 0) + topic
        frames += HEADER.pack(Kind.PUBLISH, 0, 1, 2, 1, 0, 0, 0, len(body), 8, 0, 0, 0) + body + struct.pack("<d", 1.0)
        stranger.sendall(encode_greeting(Hello("liar")) + frames)
        message = subscription.next(PATIENCE_S)
        with pytest.raises(clients.ProtocolError, match="has 800 bytes, its payload 8"):
            message.value  # noqa: B018 - reading it is the test
        bus.publish("lying", "truth")
        assert subscription.next(PATIENCE_S).value == "truth"


def test_a_connection_that_says_nothing_is_closed_after_the_hello_timeout() -> None:
    with ServingThread("tcp://127.0.0.1:0", hello_timeout_s=0.1) as broker, strange_connection(broker) as stranger:
        assert b"This is a tensorbus broker" in read_all(stranger)


def test_a_fault_of_the_brokers_own_ends_the_session_that_has_shown_it_and_no_other(
    tcp_broker: ServingThread, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(query: object, seen_by: object, rights: object, now_ns: int) -> None:
        raise RuntimeError("a fault that nobody knew of")

    tcp_broker.server.state.viewer = fail
    with clients.connect(tcp_broker.url, name="other") as bus, strange_connection(tcp_broker) as stranger:
        subscription = bus.subscribe("fine")
        question = b"\x81\xa4view\xa6server"
        stranger.sendall(encode_greeting(Hello("stranger")) + header(Kind.QUERY, body_bytes=len(question)) + question)
        assert b"the broker has a fault here" in read_all(stranger)
        bus.publish("fine", 1)
        assert subscription.next(PATIENCE_S).value == 1
    assert "session.fault" in caplog.text
    assert "a fault that nobody knew of" in caplog.text


def test_whoever_names_one_topic_too_many_goes_on_with_the_others(tcp_broker: ServingThread) -> None:
    with clients.connect(tcp_broker.url) as bus, bus.subscribe("t/#") as subscription:
        bus.publish("t/0", 0, ack="accepted")
        router = tcp_broker.server.state.router
        tcp_broker.call(lambda: setattr(router, "topics_max", len(router.topics)))
        with pytest.raises(clients.LimitExceeded, match="topics_max: .* is over the limit of .*use fewer topic names"):
            bus.publish("t/1", 1, ack="accepted")
        bus.publish("t/2", 2)
        with pytest.raises(clients.LimitExceeded, match="topics_max"):
            bus.flush(PATIENCE_S)
        with pytest.raises(clients.LimitExceeded, match="topics_max"):
            bus.request("t/3", timeout_s=PATIENCE_S)
        assert bus.publish("t/0", 10, ack="accepted") == 2
        tcp_broker.call(lambda: setattr(router, "topics_max", 100))
        assert bus.publish("t/1", 11, ack="accepted") == 1
        assert [subscription.next(PATIENCE_S).value for _ in range(3)] == [0, 10, 11]
