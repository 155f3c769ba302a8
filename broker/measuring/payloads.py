"""Payloads that show loss, repetition and disorder: message number i of a run is payload i of an endless cycle.

A receiver compares each message with the one that is due: a small one whole, which costs tens of nanoseconds, a large
one in length and at both ends, as comparing all of it would be the longest part of receiving it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[np.float32]
Payload = bytes | bytearray | memoryview

CYCLE: Final = 1024
CYCLE_BYTES_MAX: Final = 16 << 20
"""A cycle of large payloads is shorter, as it has to fit in memory."""
END_BYTE: Final = b"\xff"
WHOLE_BYTES_MAX: Final = 1024
EDGE_BYTES: Final = 64
RANK_BYTE: Final = 7
"""Where in a payload the publisher's rank is: behind its number."""


class WrongPayload(Exception):
    """A message came that was not due: one was lost, repeated, reordered or damaged."""


def cycle(size_bytes: int, rank: int = 0) -> list[bytes]:
    """The payloads of a run, all different, none like `end`; at least 16 bytes each.

    Args:
        size_bytes: of each.
        rank: of the publisher, up to 254, where several publish to one topic; it is byte RANK_BYTE of each payload.
    """
    length = max(2, min(CYCLE, CYCLE_BYTES_MAX // size_bytes))
    numbers = (number.to_bytes(RANK_BYTE, "little") + bytes([rank]) for number in range(length))
    return [number + bytes(size_bytes - 16) + number for number in numbers]


def end(size_bytes: int) -> bytes:
    """The payload that ends a run whose length the receiver does not know."""
    return END_BYTE * size_bytes


def check(payload: Payload, due: bytes, index: int) -> None:
    """Compares a message with the one that is due.

    Raises:
        WrongPayload: they differ.
    """
    if len(due) <= WHOLE_BYTES_MAX:
        same = bytes(payload) == due
    else:
        same = len(payload) == len(due) and bytes(payload[:EDGE_BYTES]) + bytes(payload[-EDGE_BYTES:]) == (
            due[:EDGE_BYTES] + due[-EDGE_BYTES:]
        )
    if not same:
        raise WrongPayload(f"message {index} begins with {bytes(payload[:8]).hex()}, due was {due[:8].hex()}")


def tensor(size_bytes: int) -> Tensor:
    """An array of ones, but for its first element, in which the sender counts."""
    return np.ones(size_bytes // 4, np.float32)


def check_tensor(array: Tensor, size_bytes: int, index: int) -> None:
    """Sums an array, as its reader would, and compares.

    Raises:
        WrongPayload: it is not message number `index`.
    """
    total = float(array.sum(dtype=np.float32))
    # The sum is exact: all partial sums are integers below 2 to the 24th, or rounded the same way.
    expected = size_bytes // 4 - 1 + index
    if array[0] != index or abs(total - expected) > expected * 1e-6:
        raise WrongPayload(f"array {index} has first element {array[0]} and sum {total}, due was {expected}")
