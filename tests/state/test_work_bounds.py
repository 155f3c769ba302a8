"""Queue groups with acknowledgement at their bounds: large jobs, too many, faults, and whatever else may happen."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from broker.limits import CHUNK_BYTES, LEASE_S, PUBLISH_WINDOW_BYTES, WORK_GROUPS_MAX, WORK_MESSAGES_MAX
from broker.protocol.bodies import Settle, Subscribe, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind, Lane
from tests.state.harness import Peer, Talk
from tests.state.working import settle, take, talk_with, topic_of, works


def test_large_jobs_are_redelivered_whole() -> None:
    talk = talk_with()
    publisher, first, heir = talk.peer(), talk.peer(), talk.peer()
    first.subscribe("jobs", queue_group="g")
    payload = bytes(range(256)) * (CHUNK_BYTES // 100)
    publisher.publish_large("jobs", payload)
    assert first.large() == [payload]
    number = heir.subscribe("jobs", queue_group="g")
    first.die()
    assert heir.large() == [payload]
    (frame,) = heir.delivered()
    assert (frame.flags, frame.count) == (Flag.TRACKED | Flag.CHUNKED, 2)
    settle(heir, number, frame)
    assert works(talk) == [(0, 0, 0)]


def test_a_done_large_job_is_let_go() -> None:
    talk = talk_with(ring_messages=0, ring_bytes=0)
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    publisher.publish_large("jobs", bytes(8 * CHUNK_BYTES))
    assert talk.state.held_bytes() >= 8 * CHUNK_BYTES
    settle(worker, number, worker.delivered()[0])
    publisher.publish("jobs", b"x")
    assert talk.state.held_bytes() <= CHUNK_BYTES


def test_a_large_message_that_its_publisher_aborts_is_no_job_and_is_let_go() -> None:
    talk = talk_with(ring_messages=0, ring_bytes=0)
    publisher, worker = talk.peer(), talk.peer()
    worker.subscribe("jobs", queue_group="g")
    stream = publisher.open_stream("jobs", 8 * CHUNK_BYTES)
    for _ in range(4):
        publisher.chunk(stream, bytes(CHUNK_BYTES))
    assert topic_of(talk, "jobs").has_jobs
    publisher.die()
    assert worker.delivered() == []
    assert not topic_of(talk, "jobs").has_jobs
    assert talk.state.held_bytes() <= CHUNK_BYTES


def test_a_large_message_that_arrives_while_the_group_forms_becomes_a_job() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    stream = publisher.open_stream("jobs", 2 * CHUNK_BYTES)
    publisher.chunk(stream, b"a" * CHUNK_BYTES)
    worker.subscribe("jobs", queue_group="g")
    assert worker.delivered() == []
    publisher.chunk(stream, b"b" * CHUNK_BYTES, last=True)
    assert worker.large() == [b"a" * CHUNK_BYTES + b"b" * CHUNK_BYTES]


def test_a_dead_large_job_is_a_large_dead_letter() -> None:
    talk = talk_with(max_deliveries=1)
    publisher, worker, mourner = talk.peer(), talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    mourner.subscribe("$dead/#")
    publisher.publish_large("jobs", bytes(3 * CHUNK_BYTES))
    settle(worker, number, worker.delivered()[0], refused=True)
    assert mourner.large() == [bytes(3 * CHUNK_BYTES)]


def test_too_many_jobs_hold_publishers_back_until_some_are_done() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g", queue_messages=1)
    publisher.publish("jobs", b"x")
    queue = next(iter(topic_of(talk, "jobs").works.values())).queue
    assert queue.messages_max == WORK_MESSAGES_MAX
    queue.messages_max = 100
    window = talk.state.settings.publish_window_messages
    for _ in range(window - 1):
        publisher.publish("jobs", b"x")
    assert publisher.topic_credit("jobs") == (0, 0)
    # Another topic is not touched.
    for _ in range(window - 1):
        publisher.publish("other", b"x")
    assert publisher.topic_credit("other")[0] > 0
    while queue.held >= 100:
        frame = worker.delivered(number)[-1]
        # To look through all that has come before, each time, takes longer than the rest.
        worker.frames.clear()
        worker.credit(number, 1, 1)
        settle(worker, number, frame)
    assert publisher.topic_credit("jobs")[0] == window


def test_a_publisher_that_is_held_back_in_a_large_message_can_go_on_when_jobs_are_done() -> None:
    talk = talk_with(ring_messages=0, ring_bytes=0)
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g", queue_messages=1)
    publisher.publish("jobs", b"x")
    next(iter(topic_of(talk, "jobs").works.values())).queue.messages_max = 1
    stream = publisher.open_stream("jobs", 64 * CHUNK_BYTES)
    for _ in range(PUBLISH_WINDOW_BYTES // CHUNK_BYTES):
        publisher.chunk(stream, bytes(CHUNK_BYTES))
    assert publisher.topic_credit("jobs") == (0, 0)
    worker.credit(number, 1, 1)
    settle(worker, number, worker.delivered()[0])
    assert publisher.topic_credit("jobs")[1] > 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (Settle([1], True, -1), "delay"),
        (Settle([1], True, 1 << 62), "delay"),
        (b"\xc1", "malformed Settle"),
        (encode_body({"deliveries": "x"}), "malformed Settle"),
    ],
)
def test_a_settlement_that_cannot_be_ends_the_session(body: object, words: str) -> None:
    talk = talk_with()
    worker = talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    worker.put(Kind.SETTLE, number=number, body=body)
    assert words in str(worker.session.failure)


def test_settling_outside_of_a_queue_group_ends_the_session() -> None:
    talk = talk_with()
    reader = talk.peer()
    number = reader.subscribe("jobs")
    reader.put(Kind.SETTLE, number=number, body=Settle([1]))
    assert "no queue group" in str(reader.session.failure)


def test_numbers_that_nobody_was_given_settle_nothing() -> None:
    talk = talk_with()
    publisher, one, two = talk.peer(), talk.peer(), talk.peer()
    number = one.subscribe("jobs", queue_group="g", queue_messages=1)
    publisher.publish("jobs", b"x")
    other = two.subscribe("jobs", queue_group="g")
    two.put(Kind.SETTLE, number=other, body=Settle([frame.stream for frame in one.delivered()] + [0, -1, 1 << 60]))
    assert works(talk) == [(0, 0, 1)]
    settle(one, number, *one.delivered() * 2)
    assert works(talk) == [(0, 0, 0)]


def test_a_latest_member_gets_one_job_for_each_wish() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", "latest", queue_group="g", queue_messages=1)
    for index in range(3):
        publisher.publish("jobs", b"%d" % index)
    assert worker.payloads() == []
    worker.credit(number, 1, 65536)
    assert worker.payloads() == [b"0"]
    settle(worker, number, *worker.delivered())
    assert worker.payloads() == [b"0"]
    worker.credit(number, 1, 65536)
    assert worker.payloads() == [b"0", b"1"]


def test_control_jobs_are_bounded_by_the_same_room() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g", queue_messages=2)
    for index in range(5):
        publisher.publish("jobs", b"%d" % index, lane=Lane.CONTROL)
    assert len(worker.payloads()) == 2
    assert len(take(worker, number)) == 5


def test_a_policy_that_changes_lets_the_jobs_that_wait_be_done() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g", queue_messages=1)
    for index in range(3):
        publisher.publish("jobs", b"%d" % index)
    record = topic_of(talk, "jobs")
    record.policy, record.routes = replace(record.policy, acknowledge=False), None
    publisher.publish("jobs", b"plain")
    flags = []
    while frames := worker.delivered(number):
        worker.frames.clear()
        flags += [(bytes(frame.payload), frame.flags) for frame in frames]
        worker.credit(number, len(frames), 5)
        settle(worker, number, *frames)
    assert sorted(flags) == [(b"0", 64), (b"1", 64), (b"2", 64), (b"plain", 0)]


def test_a_topic_with_jobs_is_not_forgotten() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    number = worker.subscribe("jobs", queue_group="g")
    publisher.publish("jobs", b"x")
    publisher.die()
    talk.state.router._forget_idle(10)
    assert "jobs" in talk.state.router.topics
    settle(worker, number, worker.delivered()[0], refused=True)
    settle(worker, number, worker.delivered()[-1])
    talk.state.router._forget_idle(10)
    assert "jobs" not in talk.state.router.topics
    assert talk.state.totals().redelivered_messages == 1
    heir = talk.peer()
    heir.publish("jobs", b"new")
    assert worker.payloads()[-1] == b"new"


def test_the_default_lease_is_the_policys() -> None:
    talk = talk_with()
    publisher, worker = talk.peer(), talk.peer()
    worker.subscribe("jobs", queue_group="g")
    publisher.publish("jobs", b"x")
    talk.tick(LEASE_S - 0.5)
    assert len(worker.payloads()) == 1
    talk.tick(1.0)
    assert len(worker.payloads()) == 2


def test_a_session_that_does_not_read_keeps_no_job_from_the_others() -> None:
    talk = talk_with(lease_s=1.0)
    publisher, stuck, heir = talk.peer(), talk.peer(), talk.peer()
    stuck.subscribe("jobs", queue_group="g", queue_messages=4)
    stuck.reading = False
    number = heir.subscribe("jobs", queue_group="g", queue_messages=4)
    done: list[bytes] = []
    for index in range(20):
        publisher.publish("jobs", b"%d" % index)
        done += take(heir, number)
    for _ in range(30):
        talk.tick(0.5)
        done += take(heir, number)
    assert sorted({int(payload) for payload in done}) == list(range(20))


def nobody_waits_for_nothing(talk: Talk) -> None:
    """No job waits while a member of its group has room for it."""
    for topic in talk.state.router.topics.values():
        for work in topic.works.values():
            idle = [worker for crew in work.crews for worker in crew.workers if worker.has_room]
            assert not (work.queue.waiting and idle), f"{work} waits for {idle}"


@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens_every_job_is_done_and_nobody_waits_for_nothing(seed: int) -> None:
    generator = random.Random(seed)
    talk = talk_with(lease_s=2.0, max_deliveries=0)
    publisher = talk.peer()
    workers: list[tuple[Peer, int]] = []
    published = 0
    done: set[bytes] = set()
    filters = ("jobs/a", "jobs/b", "jobs/+", "jobs/#")

    def work(peer: Peer, number: int, *, refuses: bool = False) -> None:
        frames = [frame for frame in peer.delivered(number) if generator.random() < 0.7]
        peer.frames = [frame for frame in peer.frames if frame not in frames]
        peer.credit(number, len(frames), sum(len(frame.payload) for frame in frames))
        if not refuses:
            done.update(bytes(frame.payload) for frame in frames)
        settle(peer, number, *frames, refused=refuses, delay_s=generator.choice([0.0, 1.0]))

    for _ in range(150):
        chance = generator.random()
        if chance < 0.4:
            topic = generator.choice(["jobs/a", "jobs/b"])
            payloads = [b"%d" % number for number in range(published, published + generator.randrange(1, 6))]
            published += len(payloads)
            if len(payloads) == 2:
                publisher.publish_batch(topic, payloads)
            else:
                for payload in payloads:
                    publisher.publish(topic, payload, count=generator.randrange(10))
        elif chance < 0.5 or not workers:
            peer = talk.peer()
            number = peer.subscribe(generator.choice(filters), queue_group="g", queue_messages=generator.choice([1, 3]))
            workers.append((peer, number))
        elif chance < 0.6:
            peer, number = workers.pop(generator.randrange(len(workers)))
            if generator.random() < 0.5:
                peer.die()
            else:
                peer.put(Kind.UNSUBSCRIBE, number=number, target=1)
        elif chance < 0.7:
            talk.tick(generator.choice([0.3, 2.5]))
        else:
            work(*generator.choice(workers), refuses=generator.random() < 0.3)
        nobody_waits_for_nothing(talk)
    last = talk.peer()
    number = last.subscribe("jobs/#", queue_group="g", queue_messages=1000)
    for peer, _ in workers:
        peer.die()
    for _ in range(40):
        done.update(take(last, number))
        talk.tick(0.5)
    assert done == {b"%d" % number for number in range(published)}
    for topic in talk.state.router.topics.values():
        assert all(work.queue.held == work.queue.held_bytes == 0 for work in topic.works.values())


def test_a_topic_has_so_many_groups_and_those_that_are_over_make_room() -> None:
    talk = talk_with()
    publisher = talk.peer()
    publisher.publish("jobs", b"x")
    for index in range(WORK_GROUPS_MAX):
        worker = talk.peer()
        number = worker.subscribe("jobs", queue_group=f"group-{index}")
        if index == 0:
            settle(worker, number, worker.delivered()[0])
    refused = talk.peer()
    refused.put(Kind.SUBSCRIBE, body=Subscribe("jobs/#", queue_group="one more"), number=1, target=5)
    (failure,) = refused.failures()
    assert (failure.code, failure.limit, failure.maximum) == (Code.LIMIT, "work_groups_max", WORK_GROUPS_MAX)
    # The first group has done its job. The others, with or without members, still have one.
    for peer in talk.peers[1:4]:
        peer.die()
    assert take(refused, refused.subscribe("jobs/#", queue_group="one more")) == [b"x"]
    assert "group-0" not in topic_of(talk, "jobs").works
    assert len(topic_of(talk, "jobs").works) == WORK_GROUPS_MAX
    publisher.publish("jobs", b"y")
    assert refused.payloads() == [b"y"]
