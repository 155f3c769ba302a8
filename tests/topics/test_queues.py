"""The queue of a subscription: bound, credit, policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.limits import MESSAGE_BYTES_MAX
from broker.topics.messages import Message, Stream
from broker.topics.policy import Overflow
from broker.topics.queues import BLOCKED_BYTES_MAX, CONTROL_WAITING_MAX, UNLIMITED, Queue

CONTROL, DEFAULT, BULK = range(3)
POLICIES = list(Overflow)


def message(sequence: int = 1, size: int = 1, *, count: int = 1, lane: int = DEFAULT, stream: bool = False) -> Message:
    return Message(
        "a", "p", sequence, count, lane, 0, 1, 0, b"", b"", size, Stream() if stream else None
    )  # fmt: skip


def split(batch: Message) -> list[Message]:
    size = batch.size_bytes // batch.count
    return [message(batch.sequence + offset, size, lane=batch.lane) for offset in range(batch.count)]


def take_all(queue: Queue) -> list[int]:
    taken = []
    for lane in (CONTROL, DEFAULT, BULK):
        while (its := queue.take(lane)) is not None:
            taken.append(its.sequence)
    return taken


def test_block_refuses_nothing_and_says_when_publishers_have_to_wait() -> None:
    queue = Queue(Overflow.BLOCK, 4, 1000)
    states = []
    for sequence in range(1, 8):
        assert queue.offer(message(sequence))
        states.append(queue.over_limit)
    assert states == [False] * 4 + [True] * 3
    assert take_all(queue) == [1, 2, 3, 4]
    assert queue.over_limit
    queue.grant(3, 3)
    assert not queue.over_limit
    assert take_all(queue) == [5, 6, 7]
    assert queue.dropped == 0


def test_block_counts_bytes_that_wait_too() -> None:
    queue = Queue(Overflow.BLOCK, 1000, 1 << 30)
    queue.offer(message(1, BLOCKED_BYTES_MAX))
    assert not queue.over_limit
    queue.offer(message(2, 1))
    assert queue.over_limit


def test_drop_newest_counts_what_was_sent_and_not_credited() -> None:
    queue = Queue(Overflow.DROP_NEWEST, 4, 1000)
    assert [queue.offer(message(sequence)) for sequence in range(1, 7)] == [True] * 4 + [False] * 2
    assert take_all(queue) == [1, 2, 3, 4]
    assert not queue.offer(message(7))
    queue.grant(1, 1)
    assert queue.unread_messages == 3
    assert queue.offer(message(8))
    assert (take_all(queue), queue.dropped) == ([8], 3)


def test_drop_oldest_keeps_the_newest_and_needs_no_message_credit() -> None:
    queue = Queue(Overflow.DROP_OLDEST, 3, 1000)
    for sequence in range(1, 8):
        assert queue.offer(message(sequence))
    assert (take_all(queue), queue.dropped) == ([5, 6, 7], 4)
    for sequence in range(8, 11):
        queue.offer(message(sequence))
    assert take_all(queue) == [8, 9, 10]


def test_drop_oldest_makes_room_in_bytes() -> None:
    queue = Queue(Overflow.DROP_OLDEST, 100, 10)
    for sequence in range(1, 5):
        queue.offer(message(sequence, 4))
    assert (queue.waiting_bytes, queue.dropped) == (8, 2)
    queue.offer(message(5, 50))
    assert (queue.waiting_messages, queue.waiting_bytes, queue.dropped) == (1, 50, 4)
    assert take_all(queue) == [5]


def test_drop_oldest_takes_from_the_least_urgent_lane() -> None:
    queue = Queue(Overflow.DROP_OLDEST, 3, 1000)
    for sequence, lane in enumerate((CONTROL, BULK, DEFAULT), start=1):
        queue.offer(message(sequence, lane=lane))
    queue.offer(message(4, lane=DEFAULT))
    queue.offer(message(5, lane=DEFAULT))
    assert take_all(queue) == [1, 4, 5]
    assert queue.dropped == 2


def test_drop_oldest_opens_a_batch_of_which_some_has_to_go() -> None:
    queue = Queue(Overflow.DROP_OLDEST, 4, 1000, split)
    queue.offer(message(1, 4, count=4))
    queue.offer(message(5))
    assert (queue.waiting_messages, queue.waiting_bytes, queue.dropped) == (4, 4, 1)
    assert take_all(queue) == [2, 3, 4, 5]


def test_drop_oldest_drops_a_batch_whole_that_cannot_be_opened() -> None:
    queue = Queue(Overflow.DROP_OLDEST, 4, 1000, lambda batch: [])
    queue.offer(message(1, 4, count=4))
    queue.offer(message(5))
    assert (take_all(queue), queue.dropped, queue.waiting_messages, queue.waiting_bytes) == ([5], 4, 0, 0)


def test_latest_keeps_one_and_gives_it_when_asked() -> None:
    queue = Queue(Overflow.LATEST, 50, 1000)
    for sequence in (1, 2, 3):
        assert queue.offer(message(sequence))
    assert take_all(queue) == []
    queue.grant(5, 0)
    assert (take_all(queue), queue.dropped) == ([3], 2)
    queue.offer(message(4))
    assert take_all(queue) == []


def test_max_lag_drops_what_a_newer_message_of_the_topic_leaves_behind() -> None:
    queue = Queue(Overflow.DROP_OLDEST, 100, 1000, max_lag=2)
    others = message(1)
    others.topic = "b"
    for each in (others, *map(message, range(1, 9)), message(9, lane=CONTROL)):
        assert queue.offer(each)
    assert (queue.waiting_messages, queue.dropped) == (4, 6)
    assert take_all(queue) == [9, 1, 7, 8]
    assert [queue.gaps.take("a", 9), queue.gaps.take("b", 9)] == [6, 0]
    assert queue.offer(message(20))
    assert take_all(queue) == [20]


def test_a_large_message_leaves_nothing_behind_before_it_is_complete() -> None:
    queue = Queue(Overflow.DROP_OLDEST, 100, 1000, max_lag=0)
    large = message(2, stream=True)
    assert queue.offer(message(1))
    assert queue.offer(large)
    assert queue.waiting_messages == 2
    assert large.stream is not None
    large.stream.complete = True
    queue.drop_stale(large)
    assert take_all(queue) == [2]
    assert queue.dropped == 1


def test_what_drains_or_is_removed_is_not_kept_in_mind() -> None:
    queue = Queue(Overflow.DROP_OLDEST, 2, 1000, max_lag=5)
    waiting = [message(sequence) for sequence in range(1, 4)]
    for each in waiting:
        queue.offer(each)
    assert queue.remove(waiting[1])
    assert [each.sequence for each in queue.drain()] == [3]
    queue.offer(message(30))
    assert take_all(queue) == [30]
    assert queue.dropped == 2


@pytest.mark.parametrize("overflow", POLICIES)
def test_a_batch_that_fits_is_taken_whole_but_by_latest(overflow: Overflow) -> None:
    queue = Queue(overflow, 10, 1000)
    assert queue.has_room(message(1, count=10)) is (overflow is not Overflow.LATEST)
    assert queue.has_room(message(1, count=11)) is (overflow is Overflow.BLOCK)


@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST, Overflow.LATEST])
def test_one_message_longer_than_the_bound_is_taken_when_nothing_waits(overflow: Overflow) -> None:
    queue = Queue(overflow, 10, 100)
    queue.grant(1, 0)
    assert queue.offer(message(1, 1 << 40, stream=True))
    assert take_all(queue) == [1]


def test_control_messages_need_no_credit() -> None:
    queue = Queue(Overflow.BLOCK, 2, 1000)
    for sequence in range(1, 6):
        queue.offer(message(sequence, lane=CONTROL))
        queue.offer(message(10 + sequence))
    assert take_all(queue) == [1, 2, 3, 4, 5]
    assert queue.credit_messages == -3
    queue.grant(5, 0)
    assert take_all(queue) == [11, 12]


def test_control_messages_that_wait_are_bounded_in_number_and_bytes() -> None:
    queue = Queue(Overflow.BLOCK, 2, 1000)
    assert [queue.offer(message(n, 400, lane=CONTROL)) for n in range(4)] == [True, True, False, False]
    assert queue.dropped == 2
    assert queue.offer(message(9, 10_000))
    assert take_all(queue)[:2] == [0, 1]
    assert queue.offer(message(10, 5000, lane=CONTROL))
    many = Queue(Overflow.BLOCK, 2, 1000)
    for sequence in range(CONTROL_WAITING_MAX):
        many.offer(message(sequence, 0, lane=CONTROL))
    assert not many.offer(message(9, 0, lane=CONTROL))


def test_bytes_beyond_the_credit_wait_but_whatever_is_left_lets_one_more_go() -> None:
    queue = Queue(Overflow.BLOCK, 100, 10)
    for sequence in (1, 2, 3):
        queue.offer(message(sequence, 8))
    assert queue.take(DEFAULT) is not None
    queue.credit_bytes -= 8
    assert queue.take(DEFAULT) is not None
    queue.credit_bytes -= 8
    assert queue.take(DEFAULT) is None
    queue.grant(2, 16)
    assert queue.take(DEFAULT) is not None


def test_credit_never_exceeds_the_bound() -> None:
    queue = Queue(Overflow.BLOCK, 3, 10)
    queue.grant(1 << 32, MESSAGE_BYTES_MAX)
    assert (queue.credit_messages, queue.credit_bytes) == (3, 10)
    assert Queue(Overflow.DROP_OLDEST, 3, 10).credit_messages == UNLIMITED
    assert Queue(Overflow.LATEST, 3, 10).credit_messages == 0


def test_remove_takes_out_one_waiting_message_and_counts_it() -> None:
    queue = Queue(Overflow.DROP_NEWEST, 5, 100)
    one, two = message(1, 3), message(2, 4)
    queue.offer(one)
    queue.offer(two)
    assert queue.remove(one)
    assert not queue.remove(one)
    assert (queue.waiting_messages, queue.waiting_bytes, queue.dropped, one.holders) == (1, 4, 1, 1)
    assert take_all(queue) == [2]


def test_drain_leaves_nothing_and_hands_over_the_holds() -> None:
    queue = Queue(Overflow.BLOCK, 5, 100)
    for sequence, lane in enumerate((BULK, CONTROL, DEFAULT)):
        queue.offer(message(sequence, lane=lane))
    drained = queue.drain()
    assert [its.lane for its in drained] == [CONTROL, DEFAULT, BULK]
    assert [its.holders for its in drained] == [2, 2, 2]
    assert (queue.waiting_messages, queue.waiting_bytes) == (0, 0)
    assert take_all(queue) == []


offers = st.tuples(
    st.just("offer"), st.integers(0, 40), st.integers(1, 6), st.integers(0, 2)
)  # fmt: skip
takes = st.tuples(st.just("take"), st.integers(0, 2), st.just(0), st.just(0))
grants = st.tuples(st.just("grant"), st.integers(0, 4), st.integers(0, 50), st.just(0))


@given(st.sampled_from(POLICIES), st.integers(1, 8), st.lists(st.one_of(offers, offers, takes, grants), max_size=80))
def test_no_message_is_lost_uncounted_and_the_bounds_hold(
    overflow: Overflow, bound: int, steps: list[tuple[str, int, int, int]]
) -> None:
    queue = Queue(overflow, bound, 100, split)
    offered = taken = 0
    for what, first, second, third in steps:
        if what == "offer":
            count = second if overflow is Overflow.BLOCK or second <= queue.messages_max else 1
            count = 1 if overflow is Overflow.LATEST else count
            offered += count
            queue.offer(message(offered, first * count, count=count, lane=third))
        elif what == "take":
            its = queue.take(first)
            if its is not None:
                taken += its.count
                queue.credit_bytes -= its.size_bytes
                assert its.holders >= 1
        else:
            queue.grant(first, second)
        assert offered == taken + queue.dropped + queue.waiting_messages
        waiting = [its for lane in queue._lanes for its in lane]
        assert queue.waiting_messages == sum(its.count for its in waiting)
        assert queue.waiting_bytes == sum(its.size_bytes for its in waiting)
        assert queue._control_bytes == sum(its.size_bytes for its in waiting if its.lane == CONTROL)
        if overflow is not Overflow.BLOCK:
            assert queue.waiting_messages <= queue.messages_max
            assert queue.waiting_bytes <= queue.bytes_max or queue.waiting_messages <= 6
