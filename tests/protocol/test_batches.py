"""Batches against literal bytes, and damaged ones."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from broker.protocol.batches import ENTRY_BODY_BYTES_MAX, ENTRY_BYTES, Batch, Entry, split_batch

LITERAL = bytes.fromhex(
    "01 00 0100 03000000 0201000000000000 80 686921"
    "00 00 0000 00000000 0000000000000000"
    "02 00 0000 01000000 ffffffffffffffff 7a"
)
ENTRIES: list[Entry] = [(1, 258, b"\x80", b"hi!"), (0, 0, b"", b""), (2, (1 << 64) - 1, b"", b"z")]


def filled(entries: list[Entry]) -> Batch:
    batch = Batch(5)
    for entry in entries:
        batch.add(*entry)
    return batch


def test_a_batch_is_these_bytes_and_these_bytes_are_the_batch() -> None:
    batch = filled(ENTRIES)
    assert batch.close() == LITERAL
    assert (batch.count, batch.size_bytes, batch.due_ns) == (3, len(LITERAL), 5)
    assert split_batch(LITERAL, 3) == ENTRIES


def test_an_entry_costs_sixteen_bytes() -> None:
    assert ENTRY_BYTES == 16
    assert filled([(0, 0, bytes(ENTRY_BODY_BYTES_MAX), b"")]).size_bytes == 16 + 65_535


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, (1 << 64) - 1), st.binary(), st.binary()), max_size=20))
def test_any_batch_comes_back(entries: list[Entry]) -> None:
    batch = filled(entries)
    assert split_batch(batch.close(), batch.count) == entries
    assert batch.size_bytes == len(batch.close())


def test_a_batch_cut_anywhere_is_refused() -> None:
    for length in range(len(LITERAL)):
        with pytest.raises(ProtocolError, match="batch of 3 messages"):
            split_batch(LITERAL[:length], 3)


@pytest.mark.parametrize("count", [0, 2, 4, 1 << 32])
def test_another_count_is_refused(count: int) -> None:
    with pytest.raises(ProtocolError, match=f"batch of {count} messages in {len(LITERAL)} bytes"):
        split_batch(LITERAL, count)


@given(st.binary(max_size=200), st.integers(0, 20))
def test_any_bytes_are_a_batch_or_refused(data: bytes, count: int) -> None:
    with suppress(ProtocolError):
        entries = split_batch(data, count)
        assert len(entries) == count
        assert sum(ENTRY_BYTES + len(body) + len(payload) for _, _, body, payload in entries) == len(data)
