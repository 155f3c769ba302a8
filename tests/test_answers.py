"""Views over the client protocol: the same as over HTTP, in pieces that fit a frame."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

import clients
from broker import answers
from broker.admin.last import TEXT_MAX, last_message, line_of
from broker.admin.shapes import GroupView, LastMessage, MemberView, OperationView, RecordedView
from broker.errors import InvalidValue, ProtocolError
from broker.limits import FRAME_BODY_BYTES_MAX
from broker.protocol.batches import Batch
from broker.protocol.bodies import decode_body, encode_body
from broker.protocol.frames import Flag, Kind
from broker.protocol.pressure import Query, View
from broker.protocol.values import encode_value
from broker.security.permissions import EVERYTHING
from broker.state.records import SessionRecord
from broker.topics.messages import Message
from broker.topics.policy import TopicPolicy
from broker.topics.ring import Ring
from clients.connection import operations
from clients.connection.operations import Driver
from clients.connection.views import view
from tests.admin.test_http import ask_json
from tests.clients.ranks import embedded_url

from .daemon import PATIENCE_S, Daemon

SECOND_NS = 1_000_000_000


@pytest.fixture
def bus() -> clients.Client:
    with clients.connect(embedded_url(), name="looker") as bus:
        yield bus  # type: ignore[misc]


def test_a_view_is_what_http_tells() -> None:
    with Daemon() as daemon, clients.connect(daemon.url, name="looker") as bus:
        bus.publish("metrics/loss", 0.5, ack="accepted")
        for what in ("server", "sessions", "topics", "groups"):
            told = json.loads(json.dumps(view(bus, what)))
            asked = ask_json(daemon, f"/api/v1/{what}")
            asked = asked.get(what, [asked])
            assert [each.keys() for each in told] == [each.keys() for each in asked]
            assert [each.get("name") for each in told] == [each.get("name") for each in asked]


def test_a_long_view_comes_in_pieces_and_whole(bus: clients.Client) -> None:
    names = [f"metrics/{'long' * 30}/{number}" for number in range(600)]
    for name in names:
        bus.publish(name, 1)
    bus.flush()
    assert [each["name"] for each in view(bus, "topics")] == names
    assert [each["name"] for each in view(bus, "topics", items_max=7)] == names[:7]
    assert [each["name"] for each in view(bus, "topics", topic_filter="metrics/+/599")] == names[-1:]


def test_what_cannot_be_shown_is_refused_and_the_session_goes_on(bus: clients.Client) -> None:
    with pytest.raises(InvalidValue, match="there are server, sessions, topics and groups"):
        view(bus, "secrets")
    with pytest.raises(clients.InvalidValue):
        view(bus, 3)
    with pytest.raises(InvalidValue):
        view(bus, "topics", topic_filter="a/#/b")
    assert view(bus, "server")[0]["sessions"] == 1


async def ask_for(driver: Driver, query: Query) -> View:
    pending = driver.core.ask(Kind.QUERY, "a view", body=encode_body(query))
    await operations.answer(driver, pending, operations.Deadline(PATIENCE_S))
    return decode_body(pending.body, View)


def test_passing_over_more_than_there_is_leaves_nothing(bus: clients.Client) -> None:
    server = cast("answers.Server", SimpleNamespace(state=SimpleNamespace(tenants={})))
    assert answers.answer(server, Query(view="sessions", after=5), [], EVERYTHING, 0) == View([])
    assert answers.answer(server, Query(view="sessions", after=-5), [], EVERYTHING, 0) == View([])
    for after in (-(2**63), 2**64 - 1):
        query = Query(view="topics", after=after)
        assert bus._driver.run(ask_for(bus._driver, query)).more is False


def group_of(world_size: int) -> GroupView:
    """A group as large as groups can be, in which the last rank is waited for by all others."""
    ranks = list(range(world_size))
    members = [
        MemberView(rank, rank, "n" * 128, "h" * 128, 1, 0.0, 0.0, LastMessage("t" * 512, "v" * TEXT_MAX, 1.0))
        for rank in ranks
    ]
    behind = dict.fromkeys(ranks, 0.123456)
    operation = OperationView(1, "star", "gathering", "all_reduce", ranks[:-1], ranks[-1:], 1.0, 1.0, behind, 1.0, 0, 0)
    words = "; ".join(f"rank {rank}: all_reduce sum float32 (1024, 1024)" for rank in ranks)
    failure = RecordedView(1, 1, "star", "", "", "", "", [], 0, "mismatch", words, 1.0, None, behind)
    return GroupView(
        "dp",
        1,
        1,
        world_size,
        ranks,
        [],
        0,
        1.0,
        "star",
        [operation] * 64,
        0,
        members,
        [],
        [],
        0,
        0,
        "",
        failure,
        [failure] * 32,
    )


def test_the_largest_group_is_told_shorter_but_with_those_that_are_waited_for() -> None:
    encoded = answers._encoded(group_of(1024))
    assert len(encoded) + answers.ANSWER_BYTES < FRAME_BODY_BYTES_MAX
    group = msgspec.msgpack.decode(encoded)
    assert group["members"][0]["rank"] == 1023
    assert group["ranks"] == list(range(1024))
    assert len(group["operations"]) == len(group["members"]) == len(group["operations"][0]["behind_s"]) == 16


def test_a_small_group_is_told_as_it_is() -> None:
    assert msgspec.msgpack.decode(answers._encoded(group_of(3)), type=GroupView) == group_of(3)


# The last message of a session.


def message(value: object, time_ns: int = 0, topic: str = "a", sender: str = "me") -> Message:
    content, _, payload = encode_value(value)
    return Message(topic, sender, 1, 1, 1, 0, content, time_ns, b"", payload, len(payload))


def session_with(*messages: Message) -> SessionRecord:
    """A session called `me` that publishes to the topics of some messages, each the last one of its topic."""
    publishers = {}
    for number, each in enumerate(messages):
        ring = Ring.of(TopicPolicy())
        ring.append(each)
        publishers[number] = SimpleNamespace(topic=SimpleNamespace(name=each.topic, ring=ring))
    return cast("SessionRecord", SimpleNamespace(name="me", publishers=publishers))


def test_the_newest_of_the_last_values_is_the_last_message() -> None:
    record = session_with(message(1, SECOND_NS, "a"), message({"step": 2}, 3 * SECOND_NS, "b"), message(3, 0, "c"))
    assert last_message(record, 5 * SECOND_NS) == LastMessage("b", '{"step":2}', 2.0)


def test_what_others_have_published_and_replies_are_not_its_last_message() -> None:
    assert last_message(session_with(message(1, 0, "a", "other"), message(2, 0, "$inbox/7")), 0) is None
    assert last_message(session_with(), 0) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("loss 0.5", "loss 0.5"),
        ("two\nlines\x1b[0m", "two lines [0m"),
        (b"\xff\x00raw", "ff 00 72 61 77"),
        ("x" * 500, "x" * (TEXT_MAX - 3) + "..."),
        ("x" * 5000, "a message of 5003 bytes"),
    ],
)
def test_a_value_is_one_short_line(value: object, text: str) -> None:
    assert line_of(message(value)) == text


def test_of_a_batch_the_last_message_counts_and_rubbish_is_told_as_such() -> None:
    batch = Batch(0)
    for value in (1, 2):
        content, _, payload = encode_value(value)
        batch.add(content, 0, b"", payload)  # type: ignore[arg-type]
    data = batch.close()

    def of(payload: bytes, flags: int = 0) -> str:
        return line_of(Message("a", "me", 1, 2, 1, flags, 0, 0, b"", payload, len(payload)))

    assert of(data, Flag.BATCH) == "2"
    assert of(data[:-3], Flag.BATCH) == of(b"", Flag.BATCH) == "a value that cannot be read"
    assert of(b"\xc1").startswith("a value that cannot be read: ")
    assert of(bytes(9000), Flag.BATCH) == "2 small messages of 9000 bytes"


def test_an_answer_that_cannot_be_read_is_an_error_of_the_protocol(
    bus: clients.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.connection.views.decode_body", lambda body, kind: View([msgspec.Raw(b"\xc1")]))
    with pytest.raises(ProtocolError):
        view(bus, "server")
