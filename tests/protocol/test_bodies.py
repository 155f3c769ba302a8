"""Bodies against the independent `msgpack` package, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from broker.protocol.bodies import (
    CollectiveFailure,
    Declare,
    Failure,
    Hello,
    Join,
    Membership,
    MessageBody,
    PublishPolicy,
    Refusal,
    Subscribe,
    Subscribed,
    Topic,
    Welcome,
    decode_body,
    encode_body,
)
from broker.protocol.tensors import TensorMeta

CASES = [
    (Topic("a/b"), {"name": "a/b"}),
    (Topic("a", "p"), {"name": "a", "sender": "p"}),
    (MessageBody(), {}),
    (
        MessageBody({"k": "v"}, TensorMeta("float32", (2, 3)), "$inbox/1", 7, True, "no"),
        {
            "headers": {"k": "v"},
            "tensor": {"dtype": "float32", "shape": [2, 3]},
            "reply_to": "$inbox/1",
            "request": 7,
            "last": True,
            "error": "no",
        },
    ),
    (
        MessageBody(tensor=TensorMeta("int8", (), "F", ">")),
        {"tensor": {"dtype": "int8", "shape": [], "order": "F", "byte_order": ">"}},
    ),
    (Subscribe("a/#"), {"filter": "a/#"}),
    (
        Subscribe("a", "latest", 1, 2, "g", "all", True),
        {
            "filter": "a",
            "overflow": "latest",
            "queue_messages": 1,
            "queue_bytes": 2,
            "queue_group": "g",
            "replay": "all",
            "responder": True,
        },
    ),
    (Subscribe("a", replay=1 << 63), {"filter": "a", "replay": 1 << 63}),
    (
        Failure(6, "too many", "topics_max", 4, 3),
        {"code": 6, "reason": "too many", "limit": "topics_max", "value": 4, "maximum": 3},
    ),
    (Subscribe("a", "block"), {"filter": "a", "overflow": "block"}),
    (Subscribed("latest"), {"overflow": "latest"}),
    (Declare("a/#"), {"filter": "a/#"}),
    (
        Declare("a", 0, 1, False, "block", 2, 3, "bulk", 4, True, 0.5, 6, ""),
        {
            "filter": "a",
            "ring_messages": 0,
            "ring_bytes": 1,
            "retain": False,
            "overflow": "block",
            "batch_bytes": 2,
            "batch_window_us": 3,
            "lane": "bulk",
            "max_message_bytes": 4,
            "acknowledge": True,
            "lease_s": 0.5,
            "max_deliveries": 6,
            "dead_letter": "",
        },
    ),
    (PublishPolicy(0, lane="bulk"), {"batch_bytes": 0, "lane": "bulk"}),
    (Join("dp", 4), {"group": "dp", "world_size": 4}),
    (Join("dp", 4, 0, 9), {"group": "dp", "world_size": 4, "rank": 0, "timeout_ns": 9}),
    (Membership(1, [0, 1], 1), {"generation": 1, "ranks": [0, 1], "rank": 1}),
    (Membership(2, [0], -1, [1]), {"generation": 2, "ranks": [0], "lost_ranks": [1]}),
    (CollectiveFailure({0: "x"}), {"claims": {0: "x"}}),
    (CollectiveFailure(missing_ranks=[1], timeout_s=2.5), {"missing_ranks": [1], "timeout_s": 2.5}),
    (Hello("n"), {"type": "hello", "name": "n"}),
    (Refusal(3, "old"), {"type": "refusal", "code": 3, "reason": "old"}),
]


@pytest.mark.parametrize(("body", "plain"), CASES, ids=lambda case: type(case).__name__)
def test_a_body_is_this_map_in_messagepack(body: msgspec.Struct, plain: dict[str, object]) -> None:
    assert msgpack.unpackb(encode_body(body), strict_map_key=False) == plain


@pytest.mark.parametrize(("body", "plain"), CASES, ids=lambda case: type(case).__name__)
def test_this_map_in_messagepack_is_the_body(body: msgspec.Struct, plain: dict[str, object]) -> None:
    assert decode_body(msgpack.packb(plain), type(body)) == body


def test_every_field_of_a_welcome_is_told() -> None:
    welcome = Welcome(1, "b", 2, 3, 4, 5, 6)
    assert sorted(msgpack.unpackb(encode_body(welcome))) == sorted(["type", *Welcome.__struct_fields__])


def test_unknown_fields_of_a_newer_peer_are_passed_over() -> None:
    assert decode_body(msgpack.packb({"name": "a", "colour": [1, {"x": None}]}), Topic) == Topic("a")


@pytest.mark.parametrize(
    ("plain", "kind", "words"),
    [
        ({}, Topic, "name"),
        ({"name": 1}, Topic, "name"),
        ({"name": b"a"}, Topic, "name"),
        (["a"], Topic, "Topic"),
        (None, Topic, "Topic"),
        ({"filter": "a", "queue_messages": "many"}, Subscribe, "queue_messages"),
        ({"filter": "a", "queue_messages": 1.5}, Subscribe, "queue_messages"),
        ({"filter": "a", "replay": 1.5}, Subscribe, "replay"),
        ({"filter": "a", "responder": 1}, Subscribe, "responder"),
        ({"headers": {"a": 1}}, MessageBody, "headers"),
        ({"tensor": {"dtype": "int8", "shape": ["a"]}}, MessageBody, "shape"),
        ({"code": "x", "reason": "y"}, Failure, "code"),
        ({"ring_messages": 1}, Declare, "filter"),
        ({"filter": "a", "ring_messages": "many"}, Declare, "ring_messages"),
        ({"filter": "a", "retain": 1}, Declare, "retain"),
        ({"batch_bytes": 1.5}, PublishPolicy, "batch_bytes"),
        ({"group": "g"}, Join, "world_size"),
    ],
)
def test_a_body_of_another_shape_is_refused_naming_body_and_field(
    plain: object, kind: type[msgspec.Struct], words: str
) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        decode_body(msgpack.packb(plain), kind)
    assert kind.__name__ in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x81", b"\x81\xa4name", b"\x81\xa4name\xa1\xff", b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff",
     b"\x81\xa4name\xdb\xff\xff\xff\xff", b"\x81\xa4name\xa1a\x00"],
)  # fmt: skip
def test_bytes_that_are_no_messagepack_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"malformed Topic body of {len(data)} bytes"):
        decode_body(data, Topic)


KINDS = st.sampled_from(
    [Topic, MessageBody, Subscribe, Declare, PublishPolicy, Failure, Join, Membership, CollectiveFailure]
)
SHORT = st.text(max_size=9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | SHORT | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SHORT | st.integers(0, 9), inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=200), KINDS)
def test_any_bytes_are_a_body_or_refused(data: bytes, kind: type[msgspec.Struct]) -> None:
    check(data, kind)


@given(
    st.dictionaries(st.sampled_from([name for body, _ in CASES for name in body.__struct_fields__]), JSON, max_size=6),
    KINDS,
)
def test_any_map_is_a_body_or_refused(plain: dict[str, object], kind: type[msgspec.Struct]) -> None:
    check(msgpack.packb(plain), kind)


def check(data: bytes, kind: type[msgspec.Struct]) -> None:
    with suppress(ProtocolError):
        body = decode_body(data, kind)
        assert decode_body(encode_body(body), kind) == body or "nan" in repr(body)
