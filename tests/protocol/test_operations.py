"""OPERATIONS as bytes."""

from __future__ import annotations

import msgpack

from broker.protocol.bodies import decode_body, encode_body
from broker.protocol.links import Decision
from broker.protocol.operations import Operations, Told


def test_operations_are_this_on_the_wire() -> None:
    body = Operations([Told(7, 1000, 0, 0, 1), Told(8, 1, 2, 2, 0, 0b101, 5)], [b"a", b"b"], 1, 2**63, 4096)
    data = encode_body(body)
    assert msgpack.unpackb(data) == {
        "told": [[7, 1000, 0, 0, 1, 0, 0], [8, 1, 2, 2, 0, 5, 5]],
        "claims": [b"a", b"b"], "phase": 1, "waits_for": 2**63, "received_bytes": 4096,
    }  # fmt: skip
    assert decode_body(data, Operations) == body


def test_what_is_left_out_is_nothing() -> None:
    assert encode_body(Operations()) == b"\x80"
    assert decode_body(b"\x80", Operations) == Operations()
    assert decode_body(msgpack.packb({"told": [[1, 2, 3, 1, 0]]}), Operations).told == [Told(1, 2, 3, 1, 0)]


def test_a_broker_that_does_not_ask_for_them_leaves_that_out() -> None:
    assert msgpack.unpackb(encode_body(Decision("ring"))) == {"schedule": "ring"}
    assert decode_body(msgpack.packb({"schedule": "ring"}), Decision).report_ms == 0
