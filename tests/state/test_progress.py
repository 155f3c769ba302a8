"""Whatever publishers and readers do, as long as they keep to their credit everything arrives and nothing stands still.

Publishers and readers here behave as the client library does: the ones send as far as their credit goes, the others
give credit back as their application takes messages, and for large ones as their chunks arrive.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from broker.limits import KIB, PLACED_BYTES_MIN
from broker.protocol.batches import split_batch
from broker.protocol.frames import Flag, Frame, Kind, Lane
from tests.state.harness import Peer, Talk
from tests.thorough import rounds

CHUNK = PLACED_BYTES_MIN
WINDOW_MESSAGES, WINDOW_BYTES = 4, 4 * CHUNK
BLOCKED_BYTES = 4 * CHUNK
TOPICS = ["a", "b", "c"]


@dataclass
class Publisher:
    """Publishes a list of messages on one topic, one after the other; a payload says who, where and which."""

    peer: Peer
    topic: str
    todo: deque[tuple[str, int, int]]
    sent: list[tuple[bytes, int]] = field(default_factory=list)
    used_messages: int = 0
    used_bytes: int = 0
    stream: tuple[int, bytes, int, int] | None = None

    def has_credit(self) -> bool:
        self.peer.topic(self.topic)
        messages, size_bytes = self.peer.topic_credit(self.topic)
        return WINDOW_MESSAGES + messages > self.used_messages and WINDOW_BYTES + size_bytes > self.used_bytes

    @property
    def is_done(self) -> bool:
        """Whether everything has been sent."""
        return not self.todo and self.stream is None

    def step(self) -> bool:
        """Sends one more frame; says whether it could."""
        if self.stream is not None:
            return self._chunk()
        if not self.todo or not self.has_credit():
            return False
        how, size, lane = self.todo.popleft()
        name = f"{self.peer.record.name} {self.topic} {len(self.sent)} ".encode()
        if how == "large":
            payload = name + bytes(size)
            self.used_messages += 1
            self.stream = (self.peer.open_stream(self.topic, len(payload), lane=lane), payload, 0, lane)
            self.sent.append((payload, lane))
        elif how == "batch":
            payloads = [name + b"%d" % number for number in range(3)]
            data = self.peer.publish_batch(self.topic, payloads)
            self.used_messages += 3
            self.used_bytes += len(data)
            self.sent += [(payload, Lane.DEFAULT) for payload in payloads]
        else:
            payload = name + bytes(size // 8)
            self.peer.publish(self.topic, payload, lane=lane)
            self.used_messages += 1
            self.used_bytes += len(payload)
            self.sent.append((payload, lane))
        return True

    def _chunk(self) -> bool:
        assert self.stream is not None
        number, payload, position, lane = self.stream
        if WINDOW_BYTES + self.peer.topic_credit(self.topic)[1] <= self.used_bytes:
            return False
        part = payload[position : position + CHUNK]
        last = position + len(part) == len(payload)
        self.peer.chunk(number, part, last=last, lane=lane)
        self.used_bytes += len(part)
        self.stream = None if last else (number, payload, position + len(part), lane)
        return True


@dataclass
class Reader:
    """Takes messages of one subscription and gives credit as the client library does."""

    peer: Peer
    number: int
    overflow: str
    queue_messages: int
    queue_bytes: int
    read: int = 0
    owed_messages: int = 0
    owed_bytes: int = 0
    asked: bool = False
    evicted: int = 0
    pending: deque[bytes] = field(default_factory=deque)
    taken: list[bytes] = field(default_factory=list)
    streams: dict[int, tuple[Frame, list[bytes]]] = field(default_factory=dict)

    def step(self, messages: int) -> bool:
        """Takes what has come and up to so many messages; says whether something happened."""
        news = self.peer.frames[self.read :]
        self.read += len(news)
        for frame in news:
            self._receive(frame)
        happened = bool(news)
        for _ in range(min(messages, len(self.pending))):
            payload = self.pending.popleft()
            self.taken.append(payload)
            self.owed_messages += 1
            self.owed_bytes += len(payload)
            happened = True
        return self._credit() or happened

    def _receive(self, frame: Frame) -> None:
        if frame.kind == Kind.DELIVER and frame.target == self.number:
            if frame.flags & Flag.CHUNKED:
                self.streams[frame.stream] = (frame, [])
            elif frame.flags & Flag.BATCH:
                self._arrived(*(payload for _, _, _, payload in split_batch(bytes(frame.payload), frame.count)))
            else:
                self._arrived(bytes(frame.payload))
        elif frame.kind == Kind.CHUNK and frame.stream in self.streams:
            parts = self.streams[frame.stream][1]
            parts.append(bytes(frame.payload))
            self.owed_bytes += len(frame.payload)
            if frame.flags & Flag.LAST:
                del self.streams[frame.stream]
                payload = b"".join(parts)
                self.owed_bytes -= len(payload)
                self._arrived(payload)
        elif frame.kind == Kind.STREAM_ABORT:
            self.streams.pop(frame.stream, None)

    def _arrived(self, *payloads: bytes) -> None:
        self.asked = False
        self.pending += payloads
        while self.overflow == "drop_oldest" and len(self.pending) > self.queue_messages:
            self.owed_bytes += len(self.pending.popleft())
            self.owed_messages += 1
            self.evicted += 1

    def _credit(self) -> bool:
        if self.overflow == "latest" and not self.asked and not self.pending:
            self.asked = True
            self.peer.credit(self.number, 1, self.queue_bytes)
            return True
        messages = 0 if self.overflow == "latest" else self.owed_messages
        threshold = 1 if self.queue_messages <= 16 else self.queue_messages // 4
        if messages < threshold and self.owed_bytes < self.queue_bytes // 8:
            return False
        self.owed_messages = 0
        size_bytes, self.owed_bytes = max(0, self.owed_bytes), min(0, self.owed_bytes)
        self.peer.credit(self.number, messages, size_bytes)
        return True


messages = st.tuples(
    st.sampled_from(["small", "small", "batch", "large"]),
    st.integers(0, 12 * CHUNK),
    st.sampled_from([Lane.DEFAULT, Lane.DEFAULT, Lane.BULK]),
)
publishers = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(TOPICS), st.lists(messages, min_size=1, max_size=6)),
    min_size=1,
    max_size=5,
    unique_by=lambda its: its[:2],
)
readers = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["#", "a", "b", "+"]),
        st.sampled_from(["block", "block", "block", "drop_oldest", "drop_newest", "latest"]),
        st.sampled_from([1, 2, 5, 100]),
        st.sampled_from([64 * KIB, 256 * KIB]),
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(autouse=True, scope="module")
def _little_may_wait() -> object:
    """Small bounds, so that few bytes reach them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.topics.queues.BLOCKED_BYTES_MAX", BLOCKED_BYTES)
        patch.setattr("broker.state.delivery.BLOCKED_BYTES_MAX", BLOCKED_BYTES)
        yield


def start(
    publishing: list[tuple[int, str, list[tuple[str, int, int]]]], reading: list[tuple[int, str, str, int, int]]
) -> tuple[list[Publisher], list[tuple[Reader, str]]]:
    """A broker with these publishers and readers; the readers with their filters."""
    talk = Talk(publish_window_messages=WINDOW_MESSAGES, publish_window_bytes=WINDOW_BYTES, ring_messages=2)
    sources = [talk.peer(f"p{number}") for number in range(3)]
    sinks = [talk.peer(f"r{number}") for number in range(3)]
    subscribed = [
        Reader(sinks[sink], sinks[sink].subscribe(its, overflow, queue_messages=bound, queue_bytes=size),
               overflow, bound, size)
        for sink, its, overflow, bound, size in reading
    ]  # fmt: skip
    active = [Publisher(sources[source], topic, deque(todo)) for source, topic, todo in publishing]
    return active, list(zip(subscribed, [its for _, its, *_ in reading], strict=True))


@hypothesis_settings(max_examples=rounds(60))
@given(publishers, readers, st.integers(0, 1 << 32))
def test_everything_arrives_in_order_and_nothing_stands_still(
    publishing: list[tuple[int, str, list[tuple[str, int, int]]]],
    reading: list[tuple[int, str, str, int, int]],
    seed: int,
) -> None:
    active, subscribed = start(publishing, reading)
    run(active, [reader for reader, _ in subscribed], random.Random(seed))
    assert all(publisher.is_done for publisher in active), "a publisher stands still"
    for reader, its in subscribed:
        check(reader, [publisher for publisher in active if its in ("#", "+", publisher.topic)])


@hypothesis_settings(max_examples=rounds(60))
@given(publishers, readers, st.integers(0, 1 << 32), st.integers(0, 40))
def test_when_some_die_the_others_go_on(
    publishing: list[tuple[int, str, list[tuple[str, int, int]]]],
    reading: list[tuple[int, str, str, int, int]],
    seed: int,
    rounds: int,
) -> None:
    active, subscribed = start(publishing, reading)
    choices = random.Random(seed)
    run(active, [reader for reader, _ in subscribed], choices, rounds)
    dead = choices.sample(active[0].peer.talk.peers, 2)
    for peer in dead:
        peer.die()
    alive = [publisher for publisher in active if publisher.peer not in dead]
    reading_on = [(reader, its) for reader, its in subscribed if reader.peer not in dead]
    run(alive, [reader for reader, _ in reading_on], choices)
    assert all(publisher.is_done for publisher in alive), "a publisher stands still"
    for reader, its in reading_on:
        relevant = [publisher for publisher in alive if its in ("#", "+", publisher.topic)]
        check_order(reader, relevant)
        if reader.overflow == "block":
            sent = {payload for publisher in relevant for payload, _ in publisher.sent}
            assert sent <= set(reader.taken), "messages of a publisher that lives are lost"


def run(active: list[Publisher], subscribed: list[Reader], choices: random.Random, rounds: int = 1 << 30) -> None:
    """Lets everybody act in a random order, for so many rounds or until nobody can any more."""
    idle = 0
    while idle < 2 and rounds:
        rounds -= 1
        moved = False
        for actor in choices.sample([*active, *subscribed], len(active) + len(subscribed)):
            if isinstance(actor, Publisher):
                moved |= actor.step()
            else:
                moved |= actor.step(choices.choice((0, 1, 1, 3)) if not idle else 100)
        idle = 0 if moved else idle + 1


def check(reader: Reader, relevant: list[Publisher]) -> None:
    """What a reader has taken are the publishers' messages, each one's in order, and it was told of all that lack."""
    dropped = reader.peer.dropped(reader.number)
    waiting = reader.peer.record.subscriptions[reader.number].queue.waiting_messages
    assert len(reader.taken) + reader.evicted + dropped + waiting == sum(len(each.sent) for each in relevant)
    if reader.overflow == "block":
        assert dropped == waiting == 0
    check_order(reader, relevant)


def check_order(reader: Reader, relevant: list[Publisher]) -> None:
    """Each publisher's messages of a lane were taken in their order, and none of them twice."""
    taken = {payload: position for position, payload in enumerate(reader.taken)}
    assert len(taken) == len(reader.taken), "delivered twice"
    for publisher in relevant:
        for lane in Lane:
            positions = [taken[payload] for payload, its in publisher.sent if its == lane and payload in taken]
            assert positions == sorted(positions), "out of order"
