"""Buffers that are used again, and never while somebody still refers to them."""

from __future__ import annotations

from collections import deque

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from broker.limits import MEMORY_LOOK_BYTES
from broker.protocol.pool import UNUSED_NS, BufferPool

CHUNK = 262_144


def address(buffer: np.ndarray) -> int:
    return buffer.ctypes.data


def test_a_buffer_has_the_length_that_was_asked_for() -> None:
    pool = BufferPool(1 << 20)
    for size in (0, 1, 4095, 4096, 4097, 100_000):
        buffer = pool.acquire(size)
        assert (buffer.nbytes, buffer.dtype, len(memoryview(buffer))) == (size, np.uint8, size)


def test_a_buffer_starts_where_tensors_may_start() -> None:
    pool = BufferPool(1 << 20)
    kept = [pool.acquire(size) for size in (1, 5000, 5000, 300_000, 300_000)]
    assert [address(buffer) % 64 for buffer in kept] == [0] * 5
    del kept
    assert address(pool.acquire(5000)) % 64 == 0


def test_what_the_pool_cannot_remember_costs_it_nothing_that_it_has() -> None:
    pool = BufferPool(1 << 20)
    first = address(pool.acquire(5000))
    pool.acquire(2 << 20)
    assert address(pool.acquire(5000)) == first


def test_a_buffer_that_nobody_refers_to_is_handed_out_again() -> None:
    pool = BufferPool(1 << 20)
    buffer = pool.acquire(5000)
    first = address(buffer)
    del buffer
    assert address(pool.acquire(8000)) == first
    assert pool.held_bytes == 8192


def test_of_several_free_buffers_the_one_that_was_given_out_last_comes_first() -> None:
    pool = BufferPool(1 << 20)
    buffers = [pool.acquire(8192) for _ in range(5)]
    last = address(buffers[-1])
    del buffers
    assert {address(pool.acquire(8192)) for _ in range(20)} == {last}


def test_where_some_are_kept_for_good_the_others_still_go_round() -> None:
    pool = BufferPool(256 << 20)
    kept = [pool.acquire(8192) for _ in range(12)]
    under_way: deque[np.ndarray] = deque(maxlen=20)
    for _ in range(2000):
        under_way.append(pool.acquire(8192))
    assert pool.held_bytes <= 3 * (len(kept) + len(under_way)) * 8192


def test_a_view_of_any_kind_keeps_its_buffer() -> None:
    keep = [
        lambda buffer: buffer,
        lambda buffer: buffer[10:20],
        memoryview,
        lambda buffer: memoryview(buffer)[5:6],
        lambda buffer: np.frombuffer(memoryview(buffer), np.uint8)[3:],
        lambda buffer: buffer.view(np.float32).reshape(2, -1),
        lambda buffer: buffer.data,
    ]
    for make in keep:
        pool = BufferPool(1 << 20)
        kept = make(pool.acquire(8192))
        others = [pool.acquire(8192) for _ in range(20)]
        assert not any(np.shares_memory(np.asarray(kept), other) for other in others), make
        del kept, others


def test_memory_that_streams_through_is_the_same_few_buffers() -> None:
    pool = BufferPool(256 << 20)
    under_way: deque[np.ndarray] = deque(maxlen=64)
    for _ in range(2000):
        under_way.append(pool.acquire(CHUNK))
    assert pool.held_bytes <= 66 * CHUNK


def test_what_is_over_the_bound_is_given_out_and_forgotten() -> None:
    pool = BufferPool(3 * CHUNK)
    buffers = [pool.acquire(CHUNK) for _ in range(10)]
    assert pool.held_bytes == 3 * CHUNK
    assert len({address(buffer) for buffer in buffers}) == 10
    assert pool.acquire(100 * CHUNK).nbytes == 100 * CHUNK


def test_what_others_lend_counts_until_memory_is_looked_at_and_what_they_do_not_lend_does_not() -> None:
    pool, looks = BufferPool(1 << 20), []
    pool.look = lambda: looks.append(1)
    lend = pool.counted(lambda size_bytes: memoryview(bytes(16)) if size_bytes else None)
    for _ in range(2 * MEMORY_LOOK_BYTES // CHUNK):
        assert lend(0) is None
        assert lend(CHUNK) == bytes(16)
    assert len(looks) == 2


def test_free_buffers_of_other_sizes_make_room() -> None:
    pool = BufferPool(3 * CHUNK)
    buffers = [pool.acquire(CHUNK) for _ in range(3)]
    kept = buffers[0]
    del buffers
    pool.acquire(2 * CHUNK)
    assert pool.held_bytes == 3 * CHUNK
    kept[:] = 7
    assert not np.shares_memory(pool.acquire(CHUNK), kept)


def test_what_a_burst_took_is_given_back_when_it_was_not_needed_for_a_while() -> None:
    pool = BufferPool(256 << 20)
    burst = [pool.acquire(CHUNK) for _ in range(100)]
    kept = burst[50]
    kept[:] = 7
    del burst
    pool.tick(UNUSED_NS)
    assert pool.held_bytes == 100 * CHUNK
    again = address(pool.acquire(CHUNK))
    pool.tick(2 * UNUSED_NS - 1)
    assert pool.held_bytes == 100 * CHUNK
    pool.tick(2 * UNUSED_NS)
    assert pool.held_bytes == 2 * CHUNK
    assert address(pool.acquire(CHUNK)) == again
    assert not any(np.shares_memory(kept, pool.acquire(CHUNK)) for _ in range(10))
    pool.tick(3 * UNUSED_NS)
    del kept
    pool.tick(4 * UNUSED_NS)
    assert pool.held_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 9)), max_size=80))
def test_no_two_holders_ever_share_memory_and_the_bound_holds(steps: list[tuple[int, int]]) -> None:
    pool = BufferPool(100_000)
    held: dict[int, np.ndarray] = {}
    for size, slot in steps:
        held.pop(slot, None)
        buffer = pool.acquire(size)
        buffer[:] = slot
        held[slot] = buffer
        del buffer
        assert pool.held_bytes <= 100_000
        assert pool.held_bytes == sum(size * len(shelf.kept) for size, shelf in pool._shelves.items())
        assert all((buffer == slot).all() for slot, buffer in held.items())
