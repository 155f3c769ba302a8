"""Values and messages as one line of text or JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from broker.cli.values import as_json, as_text, line_of, message_as_json, message_as_text
from broker.protocol.frames import Content
from clients.reading.messages import Message, Publication


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("plain text", "plain text"),
        ("", ""),
        ("two\nlines and \x1b[31mcolour", r'"two\nlines and \u001b[31mcolour"'),
        ("\x9b31m \u202e \U000e0001", r'"\u009b31m \u202e \udb40\udc01"'),
        (b"text in bytes", "text in bytes"),
        (b"\x00\xff", "<2 bytes>"),
        (None, "null"),
        (True, "true"),
        (0.5, "0.5"),
        ({"step": 1, "loss": 0.5}, '{"step":1,"loss":0.5}'),
        (np.array([[1, 2]], np.int32), '{"dtype":"int32","shape":[1,2],"data":[[1,2]]}'),
        (np.zeros(65, np.float32), '{"dtype":"float32","shape":[65]}'),
    ],
)
def test_a_value_is_one_line_of_text(value: object, line: str) -> None:
    assert as_text(value) == line


@pytest.mark.parametrize(
    ("value", "described"),
    [
        ("text", "text"),
        (b"\x00\xff", {"base64": "AP8="}),
        ({"nested": [b"\x00"], 3: float("nan")}, {"nested": [{"base64": "AA=="}], "3": None}),
        ({None: 1, b"\x00": 2}, {"null": 1, '{"base64":"AA=="}': 2}),
        (np.array(2.5), {"dtype": "float64", "shape": [], "data": 2.5}),
        (np.array([np.nan, 1]), {"dtype": "float64", "shape": [2], "data": [None, 1.0]}),
        (np.array([1 + 2j], np.complex64), {"dtype": "complex64", "shape": [1], "data": [[1.0, 2.0]]}),
        (np.array([[1, 2], [3, 4]], ">i2"), {"dtype": "int16", "shape": [2, 2], "data": [[1, 2], [3, 4]]}),
        ([np.zeros((8, 9), bool)], [{"dtype": "bool", "shape": [8, 9]}]),
    ],
)
def test_json_describes_what_it_does_not_have(value: object, described: object) -> None:
    line = as_json(value)
    assert "\n" not in line
    assert json.loads(line) == described


def test_a_topic_plays_no_tricks_on_a_terminal() -> None:
    assert line_of("a/\u202eb", lambda: 1) == r'"a/\u202eb" 1'


def test_json_shows_a_bfloat16_tensor_as_numbers() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    described = json.loads(as_json(np.array([1.5, -2], ml_dtypes.bfloat16)))
    assert described == {"dtype": "bfloat16", "shape": [2], "data": [1.5, -2.0]}


def message(content: int, payload: bytes) -> Message:
    return Message(Publication("a/topic", "somebody"), 7, 1_000, 1, content, b"", payload, None)


def test_a_message_that_can_be_read_is_shown_whole() -> None:
    readable = message(Content.BYTES, b"text")
    assert message_as_text(readable) == "a/topic text"
    assert json.loads(message_as_json(readable)) == {
        "topic": "a/topic",
        "sequence": 7,
        "sender": "somebody",
        "published_ns": 1_000,
        "lane": "default",
        "headers": {},
        "value": {"base64": "dGV4dA=="},
    }


@pytest.mark.parametrize(
    "unreadable",
    [message(99, b""), message(Content.MESSAGEPACK, b"\xc1"), message(Content.MESSAGEPACK, b"\x91" * 600 + b"\xc0")],
    ids=["unknown content", "malformed", "nested too deep to be described"],
)
def test_a_message_that_cannot_be_read_says_so_in_place_of_its_value(unreadable: Message) -> None:
    described = json.loads(message_as_json(unreadable))
    assert message_as_text(unreadable).startswith("a/topic <unreadable: ")
    assert (described["topic"], described["sequence"], "value" in described) == ("a/topic", 7, False)
    assert described["error"]
