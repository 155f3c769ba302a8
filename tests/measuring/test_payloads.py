"""Payloads that show loss, repetition, disorder and damage."""

from __future__ import annotations

import pytest

from broker.measuring import payloads

SIZES_BYTES = (16, 64, 1 << 10, 64 << 10)


@pytest.mark.parametrize("size_bytes", SIZES_BYTES)
def test_all_payloads_of_a_cycle_have_the_size_and_differ(size_bytes: int) -> None:
    cycle = payloads.cycle(size_bytes)
    assert {len(payload) for payload in cycle} == {size_bytes}
    assert len({*cycle, payloads.end(size_bytes)}) == len(cycle) + 1


def test_a_cycle_of_large_payloads_is_bounded() -> None:
    assert sum(len(payload) for payload in payloads.cycle(1 << 20)) == payloads.CYCLE_BYTES_MAX


@pytest.mark.parametrize("size_bytes", SIZES_BYTES)
def test_the_payload_that_is_due_passes_in_any_kind_of_memory(size_bytes: int) -> None:
    due = payloads.cycle(size_bytes)[1]
    assert [payloads.check(kind, due, 1) for kind in (due, bytearray(due), memoryview(due))] == [None] * 3


@pytest.mark.parametrize("size_bytes", SIZES_BYTES)
def test_the_next_payload_or_a_short_one_is_refused(size_bytes: int) -> None:
    due, following = payloads.cycle(size_bytes)[:2]
    for wrong in (following, due[:-1], payloads.end(size_bytes)):
        with pytest.raises(payloads.WrongPayload, match="message 0"):
            payloads.check(wrong, due, 0)


@pytest.mark.parametrize("size_bytes", [4 << 10, 1 << 20])
def test_a_tensor_is_known_by_its_number_and_its_sum(size_bytes: int) -> None:
    tensor = payloads.tensor(size_bytes)
    tensor[0] = 5
    payloads.check_tensor(tensor, size_bytes, 5)
    with pytest.raises(payloads.WrongPayload, match="array 6"):
        payloads.check_tensor(tensor, size_bytes, 6)
    tensor[1:] = 0
    with pytest.raises(payloads.WrongPayload, match="array 5"):
        payloads.check_tensor(tensor, size_bytes, 5)
