"""What a topic keeps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.limits import RETAINED_BYTES_MAX
from broker.topics.messages import Message, Stream
from broker.topics.policy import TopicPolicy
from broker.topics.ring import Ring


def append(ring: Ring, size: int = 1, count: int = 1, stream: Stream | None = None) -> Message:
    first = None if stream is None else stream.last
    message = Message("a", "p", ring.next_sequence, count, 1, 0, 1, 0, b"", b"", size, stream, first)
    ring.append(message)
    message.release()
    return message


def kept(ring: Ring) -> list[int]:
    return [message.sequence for message in ring.since(0)]


def test_sequences_start_at_one_and_count_the_messages_of_batches() -> None:
    ring = Ring(10, 100)
    assert ring.next_sequence == 1
    assert ring.oldest_sequence == 1
    append(ring)
    append(ring, count=3)
    append(ring)
    assert kept(ring) == [1, 2, 5]
    assert (ring.next_sequence, ring.oldest_sequence) == (6, 1)


def test_the_oldest_go_when_there_are_too_many() -> None:
    ring = Ring(3, 100)
    for _ in range(5):
        append(ring)
    assert kept(ring) == [3, 4, 5]
    assert (ring.held_messages, ring.held_bytes, ring.oldest_sequence) == (3, 3, 3)


def test_the_oldest_go_when_they_are_too_long() -> None:
    ring = Ring(100, 10)
    for _ in range(5):
        append(ring, size=4)
    assert kept(ring) == [4, 5]
    assert ring.held_bytes == 8


def test_a_batch_counts_with_all_its_messages() -> None:
    ring = Ring(5, 100)
    append(ring)
    append(ring, count=4)
    assert kept(ring) == [1, 2]
    append(ring)
    assert kept(ring) == [2, 6]


def test_the_newest_batch_is_kept_however_many_messages_it_has() -> None:
    ring = Ring(5, 100)
    append(ring)
    append(ring, count=9)
    assert kept(ring) == [2]
    append(ring)
    assert kept(ring) == [11]


def test_a_message_longer_than_the_ring_empties_it() -> None:
    ring = Ring(5, 10)
    append(ring)
    append(ring, size=11)
    assert kept(ring) == []
    assert ring.last() == []
    assert (ring.held_messages, ring.held_bytes, ring.next_sequence, ring.oldest_sequence) == (0, 0, 3, 3)


def test_a_ring_of_no_messages_keeps_none() -> None:
    ring = Ring(0, 100)
    append(ring)
    append(ring, count=4)
    assert kept(ring) == []
    assert ring.next_sequence == 6


def test_last_is_the_newest() -> None:
    ring = Ring(5, 100)
    assert ring.last() == []
    append(ring)
    newest = append(ring)
    assert ring.last() == [newest]


def test_since_takes_a_batch_of_which_any_message_counts() -> None:
    ring = Ring(50, 100)
    for count in (1, 4, 1):
        append(ring, count=count)
    assert [[m.sequence for m in ring.since(s)] for s in range(1, 8)] == [
        [1, 2, 6], [2, 6], [2, 6], [2, 6], [2, 6], [6], [],
    ]  # fmt: skip


def test_an_unfinished_message_can_be_discarded_once() -> None:
    ring = Ring(5, 100)
    append(ring)
    unfinished = append(ring, size=7, stream=Stream())
    append(ring)
    assert unfinished.first is not None
    ring.discard(unfinished)
    ring.discard(unfinished)
    assert kept(ring) == [1, 3]
    assert (ring.held_messages, ring.held_bytes, unfinished.first) == (2, 2, None)


def begin(ring: Ring, size: int = 1) -> Message:
    return append(ring, size=size, stream=Stream())


def finish(ring: Ring, message: Message) -> int:
    assert message.stream is not None
    message.stream.complete = True
    return ring.finish(message)


def test_what_falls_out_of_the_ring_is_let_go_of() -> None:
    ring = Ring(1, 100)
    old = begin(ring)
    finish(ring, old)
    assert old.first is not None
    append(ring)
    assert old.first is None


def test_the_last_value_stays_until_a_newer_one_is_complete() -> None:
    ring = Ring(5, 10)
    old = append(ring, size=9)
    new = begin(ring, size=8)
    assert ring.last() == [old, new]
    assert finish(ring, new) == -9
    assert ring.last() == [new]
    assert (ring.held_messages, ring.held_bytes) == (1, 8)


def test_the_last_value_is_what_it_was_when_a_newer_one_is_never_completed() -> None:
    ring = Ring(1, 10)
    old = append(ring, size=9)
    new = begin(ring, size=8)
    assert ring.discard(new) == 8
    assert ring.last() == [old]
    assert new.first is None
    assert ring.next_sequence == 3


def test_a_message_that_is_too_long_to_be_kept_ends_the_older_ones_when_it_is_complete() -> None:
    ring = Ring(5, 10)
    older = append(ring, size=2)
    long = begin(ring, size=1000)
    assert long.first is None
    newer = append(ring, size=3)
    assert kept(ring) == [1, 3]
    assert finish(ring, long) == -2
    assert older.first is None
    assert ring.last() == [newer]


def test_what_is_arriving_is_bounded_as_what_is_complete() -> None:
    ring = Ring(2, 10)
    complete = append(ring, size=10)
    first, second, third = (begin(ring, size=4) for _ in range(3))
    assert [message.first is None for message in (first, second, third)] == [True, False, False]
    assert ring.last() == [complete, second, third]
    fourth = begin(ring, size=9)
    assert ring.last() == [complete, fourth]
    assert ring.clear() == 19
    assert (ring.last(), fourth.first) == ([], None)


def test_messages_that_are_completed_out_of_order_are_kept_in_order() -> None:
    ring = Ring(5, 100)
    early, late = begin(ring), begin(ring)
    append(ring)
    finish(ring, late)
    assert kept(ring) == [1, 2, 3]
    finish(ring, early)
    assert kept(ring) == [1, 2, 3]
    assert [message.sequence for message in ring.last()] == [3]


@given(st.lists(st.tuples(st.integers(1, 14), st.sampled_from(["append", "begin", "finish", "abort"])), max_size=60))
def test_what_is_said_to_be_held_is_what_is_held(steps: list[tuple[int, str]]) -> None:
    ring = Ring(3, 10)
    held, under_way = 0, []
    for size, step in steps:
        if step == "append":
            before = ring.held_bytes
            append(ring, size)
            held += ring.held_bytes - before
        elif step == "begin":
            message = Message("a", "p", ring.next_sequence, 1, 1, 0, 1, 0, b"", b"", size, Stream(), None)
            held += ring.append(message)
            under_way.append(message)
        elif under_way:
            message = under_way.pop(size % len(under_way))
            held += finish(ring, message) if step == "finish" else -ring.discard(message)
        kept_now = ring.since(0)
        complete = [message for message in kept_now if message.stream is None or message.stream.complete]
        assert held == sum(message.size_bytes for message in kept_now) <= 20
        assert ring.held_bytes == sum(message.size_bytes for message in complete) <= 10
        assert ring.held_messages == len(complete) <= 3
        assert [message.sequence for message in kept_now] == sorted({message.sequence for message in kept_now})
    assert ring.clear() == held


def test_a_ring_that_keeps_its_last_message_keeps_it_whatever_its_length() -> None:
    ring = Ring(5, 10, keeps_last=True)
    append(ring)
    append(ring, size=11)
    assert kept(ring) == [2]
    append(ring, size=4)
    append(ring, size=4)
    assert kept(ring) == [3, 4]
    append(ring, size=RETAINED_BYTES_MAX + 1)
    assert kept(ring) == []


def test_a_ring_that_keeps_its_last_message_keeps_the_newest_that_arrives_beside_it() -> None:
    ring = Ring(0, 10, keeps_last=True)
    old = begin(ring, size=50)
    assert finish(ring, old) == 0
    first, second = begin(ring, size=60), begin(ring, size=70)
    assert first.first is None
    assert ring.last() == [old, second]
    assert finish(ring, second) == -50
    assert ring.last() == [second]
    unfinished = begin(ring, size=80)
    assert ring.discard(unfinished) == 80
    assert ring.last() == [second]
    assert begin(ring, size=RETAINED_BYTES_MAX + 1).first is None


def test_a_ring_that_shrinks_lets_go_of_what_is_arriving_too() -> None:
    ring = Ring(5, 100)
    arriving = begin(ring, size=50)
    assert ring.follow(TopicPolicy(ring_bytes=49)) == -50
    assert arriving.first is None


def test_a_ring_of_no_messages_may_keep_its_last() -> None:
    ring = Ring(0, 0, keeps_last=True)
    for _ in range(3):
        append(ring, size=7)
    assert kept(ring) == [3]


def test_a_ring_follows_the_bounds_of_its_policy_at_once() -> None:
    ring = Ring.of(TopicPolicy(ring_messages=5, ring_bytes=100))
    for _ in range(6):
        append(ring, size=3)
    assert ring.follow(TopicPolicy(ring_messages=2, ring_bytes=100)) == -9
    assert kept(ring) == [5, 6]
    assert ring.follow(TopicPolicy(ring_messages=9, ring_bytes=3)) == -3
    assert kept(ring) == [6]
    assert ring.follow(TopicPolicy(retain=True, ring_messages=0)) == 0
    assert kept(ring) == [6]
    assert ring.follow(TopicPolicy(retain=False)) == -3
    append(ring)
    assert kept(ring) == []
    assert ring.follow(TopicPolicy(ring_messages=3)) == 0
    for _ in range(4):
        append(ring)
    assert kept(ring) == [9, 10, 11]


@given(st.integers(0, 6), st.integers(0, 30), st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), max_size=60))
def test_the_bounds_hold_whatever_comes(messages: int, size_bytes: int, appended: list[tuple[int, int]]) -> None:
    ring = Ring(messages, size_bytes)
    for size, count in appended:
        append(ring, size, count)
        assert ring.held_bytes == sum(message.size_bytes for message in ring.since(0)) <= size_bytes
        assert ring.held_messages == sum(message.count for message in ring.since(0))
        assert ring.held_messages <= messages or (len(ring.since(0)) == 1 and messages)
        assert all(message.sequence + message.count <= ring.next_sequence for message in ring.since(0))
    assert ring.next_sequence == 1 + sum(count for _, count in appended)
