"""Jobs: acknowledged, refused, redelivered; with both kinds of client over every transport."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import clients
from broker.admin.views import QueueGroupView, SessionView, TopicView, session_views, topic_views
from broker.metrics import Metrics
from clients import DEFERRED, InvalidValue, Message
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def policy(broker: ServingThread) -> None:
    """Every topic whose name begins with jobs is acknowledged, and a job dies of its second failure."""

    def set_policy() -> None:
        router = broker.server.state.router
        router.policies.defaults = replace(router.policies.defaults, acknowledge=True, max_deliveries=2)

    broker.call(set_policy)


def works(broker: ServingThread) -> tuple[int, int, int]:
    def count() -> tuple[int, int, int]:
        queue = broker.server.state.router.topics["jobs"].works["g"].queue
        return queue.waiting, queue.delayed, queue.leased

    return broker.call(count)  # type: ignore[return-value]


def test_an_acknowledged_job_is_done(broker: ServingThread, bus: clients.Client) -> None:
    subscription = bus.subscribe("jobs", queue_group="g")
    bus.publish("jobs", {"layer": 3})
    message = subscription.next(PATIENCE_S)
    assert (message.value, message.is_job, message.deliveries, message.redelivered) == ({"layer": 3}, True, 1, False)
    message.ack()
    bus.flush()
    assert works(broker) == (0, 0, 0)


def test_a_refused_job_comes_again_and_says_so(broker: ServingThread, bus: clients.Client) -> None:
    subscription = bus.subscribe("jobs", queue_group="g")
    bus.publish("jobs", 1)
    subscription.next(PATIENCE_S).nack()
    again = subscription.next(PATIENCE_S)
    assert (again.value, again.deliveries, again.redelivered) == (1, 2, True)
    again.ack()
    bus.flush()
    assert works(broker) == (0, 0, 0)


def test_a_refused_job_can_be_put_off(broker: ServingThread, bus: clients.Client) -> None:
    subscription = bus.subscribe("jobs", queue_group="g")
    bus.publish("jobs", 1)
    subscription.next(PATIENCE_S).nack(0.2)
    bus.flush()
    assert works(broker) == (0, 1, 0)
    assert subscription.next(PATIENCE_S).deliveries == 2


def test_only_the_first_word_about_a_job_counts(broker: ServingThread, bus: clients.Client) -> None:
    subscription = bus.subscribe("jobs", queue_group="g")
    bus.publish("jobs", 1)
    message = subscription.next(PATIENCE_S)
    message.ack()
    message.ack()
    message.nack()
    bus.flush()
    assert works(broker) == (0, 0, 0)
    assert subscription.pending == 0


def test_a_message_that_is_no_job_cannot_be_settled(bus: clients.Client) -> None:
    subscription = bus.subscribe("jobs")
    bus.publish("jobs", 1)
    message = subscription.next(PATIENCE_S)
    assert (message.is_job, message.deliveries, message.redelivered) == (False, 1, False)
    with pytest.raises(InvalidValue, match="not to be acknowledged: it takes a queue_group"):
        message.ack()
    with pytest.raises(InvalidValue, match="not to be acknowledged"):
        message.nack()


@pytest.mark.parametrize("delay_s", [-1, float("nan"), float("inf"), 1e6, "1", None])
def test_a_delay_that_cannot_be_is_refused_and_the_job_is_still_there(bus: clients.Client, delay_s: object) -> None:
    subscription = bus.subscribe("jobs", queue_group="g")
    bus.publish("jobs", 1)
    message = subscription.next(PATIENCE_S)
    with pytest.raises(InvalidValue, match="delay_s"):
        message.nack(delay_s)  # type: ignore[arg-type]
    message.nack()
    assert subscription.next(PATIENCE_S).redelivered


@pytest.mark.parametrize("priority", [-1, 10, 1.5, "9", None])
def test_a_priority_that_cannot_be_is_refused(bus: clients.Client, priority: object) -> None:
    with pytest.raises(InvalidValue, match="priority"):
        bus.publish("jobs", 1, priority=priority, urgent=True, headers={"a": "b"})  # type: ignore[arg-type]


def test_priorities_go_first_whatever_the_size(bus: clients.Client, other: clients.Client) -> None:
    large = np.arange(40_000, dtype="float64")
    other.subscribe("jobs", queue_group="g").close()
    for priority, value in ((0, "low"), (0, large), (5, "middle"), (9, large), (9, "high")):
        bus.publish("jobs", value, priority=priority)
    bus.flush()
    with other.subscribe("jobs", queue_group="g", queue_messages=1) as subscription:
        values = []
        for _ in range(5):
            message = subscription.next(PATIENCE_S)
            values.append(message.value if isinstance(message.value, str) else "large")
            message.ack()
    assert values == ["large", "high", "middle", "low", "large"]


def test_large_jobs_are_redelivered_whole(bus: clients.Client, other: clients.Client) -> None:
    array = np.random.default_rng(0).standard_normal(300_000)
    first = other.subscribe("jobs", queue_group="g")
    bus.publish("jobs", array)
    first.next(PATIENCE_S).nack()
    again = first.next(PATIENCE_S)
    assert again.redelivered
    np.testing.assert_array_equal(again.value, array)
    again.ack()


def test_a_dead_letter_tells_its_story(bus: clients.Client, other: clients.Client) -> None:
    letters = other.subscribe("$dead/jobs")
    subscription = bus.subscribe("jobs", queue_group="g")
    array = np.arange(5)
    bus.publish("jobs", array, headers={"step": "3"})
    for _ in range(2):
        subscription.next(PATIENCE_S).nack()
    letter = letters.next(PATIENCE_S)
    np.testing.assert_array_equal(letter.value, array)
    assert (letter.topic, letter.sender) == ("$dead/jobs", "first")
    assert letter.headers == {
        "step": "3",
        "dead-letter-topic": "jobs",
        "dead-letter-sequence": "1",
        "dead-letter-reason": "a worker refused it",
        "dead-letter-deliveries": "2",
    }


def test_what_a_closed_client_had_goes_to_another_one(
    broker: ServingThread, connect: Connect, bus: clients.Client
) -> None:
    leaver = connect("leaver")
    held = leaver.subscribe("jobs", queue_group="g")
    for index in range(3):
        bus.publish("jobs", index)
    # All of them have been given to the one that leaves.
    bus.flush()
    job = held.next(PATIENCE_S)
    assert job.value == 0
    leaver.close()
    job.ack()
    heir = bus.subscribe("jobs", queue_group="g")
    jobs = [heir.next(PATIENCE_S) for _ in range(3)]
    assert [job.value for job in jobs] == [0, 1, 2]
    assert all(job.redelivered for job in jobs)


def test_an_ack_of_an_old_session_is_no_error_and_the_job_comes_again(
    broker: ServingThread, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    reconnected = threading.Event()
    worker = connect("worker", on_reconnect=lambda event: reconnected.set())
    subscription = worker.subscribe("jobs", queue_group="g")
    worker.publish("jobs", "in hand")
    worker.publish("jobs", "not taken")
    message = subscription.next(PATIENCE_S)
    worker.flush()
    broker.cut_off("worker")
    assert reconnected.wait(PATIENCE_S)
    with caplog.at_level(logging.DEBUG, "clients.connection.operations"):
        message.ack()
        worker.flush()
    assert "job.settled_too_late" in caplog.text
    jobs = [subscription.next(PATIENCE_S) for _ in range(2)]
    # What was here and not taken is not handed out a second time.
    assert sorted((job.value, job.deliveries) for job in jobs) == [("in hand", 2), ("not taken", 2)]
    for job in jobs:
        job.ack()
    worker.flush()
    assert works(broker) == (0, 0, 0)


def test_an_ack_after_the_subscription_has_ended_is_no_error(broker: ServingThread, bus: clients.Client) -> None:
    subscription = bus.subscribe("jobs", queue_group="g")
    bus.publish("jobs", 1)
    message = subscription.next(PATIENCE_S)
    subscription.close()
    message.ack()
    bus.flush()
    assert works(broker) == (1, 0, 0)


class Calls:
    """What a handler was called with, and what it does about each."""

    def __init__(self, act: Callable[[Message], object], expected: int) -> None:
        self.seen: list[tuple[object, int]] = []
        self.kept: list[Message] = []
        self.complete = threading.Event()
        self._act = act
        self._expected = expected

    def __call__(self, message: Message) -> object:
        self.seen.append((message.value, message.deliveries))
        self.kept.append(message)
        try:
            return self._act(message)
        finally:
            if len(self.seen) == self._expected:
                self.complete.set()


def fail(message: Message) -> None:
    raise RuntimeError("this job cannot be done")


def test_a_handler_that_returns_has_done_its_job(broker: ServingThread, bus: clients.Client) -> None:
    calls = Calls(lambda message: None, 3)
    subscription = bus.subscribe("jobs", queue_group="g", queue_messages=1, handler=calls)
    for index in range(3):
        bus.publish("jobs", index)
    assert calls.complete.wait(PATIENCE_S)
    subscription.close()
    assert calls.seen == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.filterwarnings("ignore")
def test_a_handler_that_raises_refuses_its_job(connect: Connect, bus: clients.Client) -> None:
    letters = bus.subscribe("$dead/#")
    calls = Calls(fail, 2)
    worker = connect("worker")
    worker.subscribe("jobs", queue_group="g", handler=calls)
    bus.publish("jobs", "poison")
    assert letters.next(PATIENCE_S).value == "poison"
    assert calls.seen == [("poison", 1), ("poison", 2)]


def test_a_handler_may_settle_itself(broker: ServingThread, connect: Connect, bus: clients.Client) -> None:
    calls = Calls(lambda message: message.nack() if message.deliveries == 1 else None, 2)
    worker = connect("worker")
    worker.subscribe("jobs", queue_group="g", handler=calls)
    bus.publish("jobs", 1)
    assert calls.complete.wait(PATIENCE_S)
    assert calls.seen == [(1, 1), (1, 2)]


def test_a_handler_may_keep_its_job(broker: ServingThread, connect: Connect, bus: clients.Client) -> None:
    calls = Calls(lambda message: DEFERRED, 1)
    worker = connect("worker")
    worker.subscribe("jobs", queue_group="g", handler=calls)
    bus.publish("jobs", 1)
    assert calls.complete.wait(PATIENCE_S)
    worker.flush()
    assert works(broker) == (0, 0, 1)


def test_requests_to_responders_of_an_acknowledged_topic_are_answered_and_are_no_jobs(
    broker: ServingThread, connect: Connect, bus: clients.Client
) -> None:
    seen = []

    def answer(request: clients.Message) -> object:
        seen.append((request.is_job, request.deliveries))
        return request.value + 1

    connect("worker").respond("jobs", answer, queue_group="g")
    assert bus.request("jobs", 41, timeout_s=PATIENCE_S).value == 42
    assert seen == [(False, 1)]
    assert not broker.call(lambda: broker.server.state.router.topics["jobs"].works)


def test_a_job_may_be_acknowledged_from_any_thread(tcp_broker: ServingThread) -> None:
    def set_policy() -> None:
        router = tcp_broker.server.state.router
        router.policies.defaults = replace(router.policies.defaults, acknowledge=True)

    tcp_broker.call(set_policy)
    with clients.connect(tcp_broker.url) as bus, bus.subscribe("jobs", queue_group="g") as subscription:
        for index in range(200):
            bus.publish("jobs", index)
        messages = [subscription.next(PATIENCE_S) for _ in range(200)]
        threads = [threading.Thread(target=lambda part=messages[n::4]: [m.ack() for m in part]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bus.flush()
        assert works(tcp_broker) == (0, 0, 0)


def test_what_becomes_of_jobs_can_be_seen(broker: ServingThread, bus: clients.Client) -> None:
    subscription = bus.subscribe("jobs", queue_group="g", queue_messages=1)
    for value in ("twice", "next"):
        bus.publish("jobs", value)
    for _ in range(2):
        subscription.next(PATIENCE_S).nack()
    assert subscription.next(PATIENCE_S).value == "next"
    bus.publish("jobs", "waits")
    bus.flush()

    def look() -> tuple[list[TopicView], list[SessionView], str]:
        server = broker.server
        return topic_views(server), session_views(server, 0), Metrics(server).render()[0].decode()

    topics, sessions, metrics = broker.call(look)
    (view,) = topics[0].queue_groups
    held_bytes = len(b"\xa5waits" + b"\xa4next")
    assert view == QueueGroupView("g", 1, 1, 0, 1, held_bytes, 1, 1, holds_back=False)
    assert topics[0].subscriptions == 1
    assert sessions[0].subscriptions[0].unsettled_jobs == 1
    for line in (
        "messages_redelivered_total 1.0",
        "messages_dead_lettered_total 1.0",
        "jobs_waiting 1.0",
        "jobs_leased 1.0",
    ):
        assert f"tensorbus_{line}\n" in metrics
