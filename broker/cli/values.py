"""Messages as text for terminals and programs.

JSON has no bytes, no tensors and no NaN: they become {"base64": ...}, {"dtype", "shape", "data"} and null.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from broker.errors import BrokerError
from clients import Message

TENSOR_ELEMENTS_SHOWN_MAX: Final = 64
"""Of a larger tensor only dtype and shape are shown."""


def as_json(value: object) -> str:
    """A value in one line of JSON, in which what a terminal could obey is escaped, as no encoder has to do."""
    line = msgspec.json.encode(_described(value)).decode()
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in line)


def as_text(value: object) -> str:
    """A value in one line: text as it is, if it fits a line, and everything else as JSON.

    Bytes that are UTF-8 are shown as text, others by their length.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return f"<{len(value)} bytes>"
    # Control characters could play tricks on a terminal; JSON escapes them.
    return value if isinstance(value, str) and value.isprintable() else as_json(value)


def message_as_text(message: Message) -> str:
    """A message's topic and value in one line; a value that cannot be read does not end the reading of others."""
    return line_of(message.topic, lambda: message.value)


def message_as_json(message: Message) -> str:
    """A whole message in one line of JSON; one that cannot be read has `error` in place of headers and value."""
    described: dict[str, object] = {
        "topic": message.topic,
        "sequence": message.sequence,
        "sender": message.sender,
        "published_ns": message.published_ns,
        "lane": message.lane,
    }
    return object_of(described, lambda: {"headers": dict(message.headers), "value": message.value})


def line_of(topic: str, read: Callable[[], object]) -> str:
    """A topic and the value that is read, in one line; or why it cannot be read."""
    shown = as_text(topic)
    try:
        return f"{shown} {as_text(read())}"
    except (BrokerError, RecursionError) as error:
        return f"{shown} <unreadable: {error}>"


def object_of(described: Mapping[str, object], read: Callable[[], Mapping[str, object]]) -> str:
    """What is known of a message and what is read of it, in one line of JSON; or an `error` in place of the latter."""
    try:
        return as_json({**described, **read()})
    except (BrokerError, RecursionError) as error:
        return as_json({**described, "error": str(error)})


def _described(value: object) -> object:
    """The value with plain things in place of what JSON does not have."""
    match value:
        case bytes():
            return {"base64": base64.b64encode(value).decode()}
        case np.ndarray():
            return _tensor(value)
        case list() | tuple():
            return [_described(item) for item in value]
        case dict():
            return {_key(key): _described(item) for key, item in value.items()}
        case _:
            return value


def _key(key: object) -> str:
    """JSON's keys are text; MessagePack's can be anything."""
    return key if isinstance(key, str) else as_json(key)


def _tensor(array: NDArray[np.generic]) -> dict[str, object]:
    described: dict[str, object] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    if array.size <= TENSOR_ELEMENTS_SHOWN_MAX:
        described["data"] = _elements(array)
    return described


def _elements(array: NDArray[np.generic]) -> object:
    if array.dtype.kind == "c":
        # A complex number is a pair, as in numpy's own memory layout.
        return np.stack([array.real, array.imag], axis=-1).tolist()
    if array.dtype.kind not in "biuf":
        # bfloat16 is no dtype of numpy's own; every value of it is a float32.
        return array.astype(np.float32).tolist()
    return array.tolist()
