"""Several workers behind one port: to a client they are one broker, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, suppress
from typing import NoReturn

import numpy as np
import pytest

import clients
from broker.topics.owners import owner
from clients import aio
from clients.connection.lifetimes import FORKED
from clients.connection.views import view
from clients.workers.parts import Parts
from clients.workers.subscriptions import MergedSubscription
from tests.background import in_background
from tests.daemon import PATIENCE_S, Daemon, Process, run
from tests.holding_back import publish_until_held_back
from tests.system.forking_at_workers import WORKERS
from tests.system.workers import topic_of, wait_until

TOPICS = [f"gradients/{number}" for number in range(24)]


@pytest.fixture
def daemon(several: Daemon) -> Daemon:
    return several


# Topics.


@pytest.mark.parametrize("at", [0, 1], ids=["tcp", "unix"])
@pytest.mark.parametrize("shared", [False, True], ids=["bytes", "shared"])
def test_messages_of_many_topics_arrive_once_and_in_order(daemon: Daemon, at: int, shared: bool) -> None:
    url = daemon.urls[at]
    with clients.connect(url, shared_memory=shared) as bus, clients.connect(url, shared_memory=shared) as reader:
        every = reader.subscribe("gradients/#")
        single = {topic: reader.subscribe(topic) for topic in TOPICS}
        for number in range(20):
            for topic in TOPICS:
                bus.publish(topic, number)
        bus.flush(PATIENCE_S)
        seen: dict[str, list[int]] = {topic: [] for topic in TOPICS}
        for _ in range(20 * len(TOPICS)):
            message = every.next(PATIENCE_S)
            seen[message.topic].append(message.value)
        assert seen == {topic: list(range(20)) for topic in TOPICS}
        assert every.pending == every.dropped == 0
        for subscription in single.values():
            assert [subscription.next(PATIENCE_S).value for _ in range(20)] == list(range(20))
        with pytest.raises(clients.TimeoutError):
            every.next(0.0)


def test_large_arrays_go_whichever_worker_has_their_topic(daemon: Daemon, workers: int) -> None:
    array = np.arange(300_000, dtype="float32")
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url) as reader:
        every = reader.subscribe("weights/#")
        for worker in range(workers):
            placed = bus.empty(array.shape)
            placed[...] = array
            bus.publish(topic_of(worker, workers, "weights"), placed)
            bus.publish(topic_of(worker, workers, "weights"), array)
        for _ in range(2 * workers):
            assert np.array_equal(every.next(PATIENCE_S).value, array)


def test_what_is_accepted_is_kept_and_replayed(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        for topic in TOPICS:
            assert [bus.publish(topic, number, ack="accepted") for number in range(3)] == [1, 2, 3]
        latest = bus.subscribe("gradients/+", replay="latest")
        assert Counter(latest.next(PATIENCE_S).topic for _ in TOPICS) == Counter(TOPICS)
        assert latest.pending == 0
        everything = bus.subscribe("gradients/+", replay="all")
        assert sum(everything.next(PATIENCE_S).value for _ in range(3 * len(TOPICS))) == 3 * len(TOPICS)


def test_a_policy_for_a_filter_holds_everywhere(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url) as other:
        bus.declare("gradients/#", max_message_bytes=4)
        for topic in TOPICS:
            with pytest.raises(clients.LimitExceeded):
                other.publish(topic, b"much too long", ack="accepted")
        with pytest.raises(clients.InvalidValue, match="leave it out"):
            bus.declare("jobs/#", dead_letter="lost")


class Silent:
    """Stands in for the client of a worker that does not answer in time."""

    def declare(self, topic_filter: str, **settings: object) -> NoReturn:
        raise clients.TimeoutError(f"the broker to take the policy of {topic_filter!r}", 0.0)


@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
def test_a_policy_that_one_worker_does_not_answer_for_says_which_have(daemon: Daemon, workers: int, kind: str) -> None:
    async def declare_with_coroutines() -> None:
        async with await aio.connect(daemon.url) as bus:
            await bus.declare("gradients/#", retain=True)
            second, bus._clients[1] = bus._clients[1], Silent()
            try:
                await bus.declare("gradients/#", retain=False)
            finally:
                bus._clients[1] = second

    def declare() -> None:
        with clients.connect(daemon.url) as bus:
            bus.declare("gradients/#", retain=True)
            second, bus._clients[1] = bus._clients[1], Silent()
            try:
                bus.declare("gradients/#", retain=False)
            finally:
                bus._clients[1] = second

    with pytest.raises(clients.TimeoutError) as caught:
        declare() if kind == "synchronous" else asyncio.run(declare_with_coroutines())
    assert caught.value.__notes__ == [
        f"declare('gradients/#') at the broker's {workers} workers: agreed: 0; failed at: 1; "
        f"not asked: {'none' if workers == 2 else 2}; declare it again"
    ]


def test_a_policy_that_cannot_be_holds_nowhere_and_says_no_more(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, pytest.raises(clients.InvalidValue) as caught:
        bus.declare("gradients/#", max_message_bytes=-1)
    assert not hasattr(caught.value, "__notes__")


def test_a_subscription_to_all_workers_that_nothing_refers_to_is_closed_at_all_of_them(daemon: Daemon) -> None:
    async def drop_with_coroutines() -> None:
        async with await aio.connect(daemon.url) as reader:
            await reader.subscribe("gradients/#", queue_messages=10)
            gc.collect()
            await asyncio.to_thread(publish_to_all)

    def publish_to_all() -> None:
        with clients.connect(daemon.url) as bus:
            for topic in TOPICS[:6]:
                # More than a publisher may send ahead of what is read.
                for _ in range(300):
                    bus.publish(topic, bytes(10_000), timeout_s=PATIENCE_S)
            bus.flush(PATIENCE_S)

    with clients.connect(daemon.url) as reader:
        reader.subscribe("gradients/#", queue_messages=10)
        gc.collect()
        publish_to_all()
    asyncio.run(drop_with_coroutines())


def test_a_handler_handles_the_messages_of_all_topics_one_after_the_other(daemon: Daemon) -> None:
    handled: list[str] = []
    inside, overlaps, done = [0], [0], threading.Event()

    def handle(message: clients.Message) -> None:
        inside[0] += 1
        overlaps[0] += inside[0] - 1
        handled.append(message.topic)
        os.sched_yield()
        inside[0] -= 1
        if len(handled) == 10 * len(TOPICS):
            done.set()

    with clients.connect(daemon.url) as bus:
        bus.subscribe("gradients/#", handler=handle)
        for _ in range(10):
            for topic in TOPICS:
                bus.publish(topic, 1)
        assert done.wait(PATIENCE_S)
    assert Counter(handled) == Counter(10 * TOPICS)
    assert overlaps == [0]


def test_a_reader_that_waits_is_woken_by_whichever_worker_has_the_message(daemon: Daemon, workers: int) -> None:
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url) as reader:
        every = reader.subscribe("#")
        for worker in range(workers):
            thread, outcome = in_background(lambda: every.next(PATIENCE_S).value)
            bus.publish(topic_of(worker, workers), worker, urgent=True)
            thread.join(PATIENCE_S)
            assert outcome == [worker]


def test_closing_ends_the_wait_of_a_reader_and_what_is_here_can_be_taken(daemon: Daemon, workers: int) -> None:
    with clients.connect(daemon.url) as bus:
        every = bus.subscribe("#")
        for worker in range(workers):
            bus.publish(topic_of(worker, workers), worker)
        bus.flush(PATIENCE_S)
        wait_until(lambda: every.pending == workers)
        every.close()
        assert sorted(message.value for message in every) == list(range(workers))
        again = bus.subscribe("#")
        thread, outcome = in_background(lambda: again.next(PATIENCE_S))
        bus.close()
        thread.join(PATIENCE_S)
        assert isinstance(outcome[0], clients.ConnectionClosed)
        with pytest.raises(clients.ConnectionClosed):
            bus.publish("a", 1)


def subscribed(bus: clients.Client, watcher: clients.Client) -> int:
    """How many subscriptions the workers have of a client."""
    bus.flush(PATIENCE_S)
    return sum(len(each["subscriptions"]) for each in view(watcher, "sessions") if each["name"] == bus.name)


def test_when_one_worker_does_not_answer_the_others_parts_of_a_subscription_end_too(
    daemon: Daemon, workers: int
) -> None:
    class Silent:
        def close(self) -> None:
            raise clients.TimeoutError("an answer", 5.0)

    with clients.connect(daemon.url, name="reader") as bus, clients.connect(daemon.url) as watcher:
        every = bus.subscribe("#")
        assert isinstance(every, MergedSubscription)
        kept, *others = every._parts
        every._parts = Parts([Silent(), *others])  # type: ignore[list-item]
        with pytest.raises(clients.TimeoutError):
            every.close()
        assert subscribed(bus, watcher) == 1
        kept.close()


# Requests and jobs.


def test_requests_find_responders_at_each_topic(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url) as server:
        server.respond("gradients/+", lambda request: (request.topic, request.value + 1))
        for number, topic in enumerate(TOPICS):
            assert bus.request(topic, number, timeout_s=PATIENCE_S).value == [topic, number + 1]
            assert [reply.value for reply in bus.request_many(topic, 0, timeout_s=PATIENCE_S)] == [[topic, 1]]
        with pytest.raises(clients.NoResponders):
            bus.request("nobody", 1)


def test_responders_of_one_client_may_ask_each_other_whichever_workers_they_are_at(
    daemon: Daemon, workers: int
) -> None:
    first, last = topic_of(0, workers), topic_of(workers - 1, workers)
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url) as asker:
        bus.respond(last, lambda request: request.value * 2)
        bus.respond(first, lambda request: bus.request(last, request.value, timeout_s=PATIENCE_S).value + 1)

        def count(request: clients.Request) -> Iterator[int]:
            yield from (bus.request(last, number, timeout_s=PATIENCE_S).value for number in range(3))

        bus.respond("counting", count)
        assert asker.request(first, 20, timeout_s=PATIENCE_S).value == 41
        assert [reply.value for reply in asker.request_many("counting", timeout_s=PATIENCE_S)] == [0, 2, 4]


def test_each_job_of_a_queue_group_goes_to_one_member(daemon: Daemon) -> None:
    with ExitStack() as stack:
        bus, *members = [stack.enter_context(clients.connect(daemon.url)) for _ in range(3)]
        bus.declare("gradients/+", acknowledge=True, lease_s=600.0)
        done = [member.subscribe("gradients/+", queue_group="g", queue_messages=4) for member in members]
        for topic in TOPICS:
            for number in range(4):
                bus.publish(topic, number)
        bus.flush(PATIENCE_S)
        taken: list[tuple[str, int]] = []

        def work(subscription: clients.Subscription) -> None:
            while len(taken) < 4 * len(TOPICS):
                try:
                    message = subscription.next(0.2)
                except clients.TimeoutError:
                    continue
                taken.append((message.topic, message.value))
                message.ack()

        threads = [in_background(lambda each=each: work(each))[0] for each in done]
        for thread in threads:
            thread.join(PATIENCE_S)
        assert Counter(taken) == Counter((topic, number) for topic in TOPICS for number in range(4))


def test_dead_letters_are_read_where_they_are_looked_for(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        bus.declare("gradients/+", acknowledge=True, max_deliveries=1)
        for topic in TOPICS[:6]:
            dead = bus.subscribe(f"$dead/{topic}")
            jobs = bus.subscribe(topic, queue_group="g")
            bus.publish(topic, topic)
            jobs.next(PATIENCE_S).nack()
            assert dead.next(PATIENCE_S).value == topic


# Groups, and what the broker says of itself.


def test_groups_reduce_at_whichever_worker_they_are(daemon: Daemon, workers: int) -> None:
    names = [topic_of(worker, workers, "group") for worker in range(workers)]

    def rank(number: int) -> list[float]:
        with clients.connect(daemon.url) as bus:
            sums = []
            for name in names:
                with bus.group(name, world_size=2, rank=number, timeout_s=PATIENCE_S) as group:
                    array = np.full(1000, number + 1.0)
                    group.all_reduce(array, timeout_s=PATIENCE_S)
                    sums.append(float(array[0]))
            return sums

    outcomes = [in_background(lambda number=number: rank(number)) for number in range(2)]
    for thread, _ in outcomes:
        thread.join(PATIENCE_S)
    assert [outcome for _, outcome in outcomes] == [[[3.0] * workers]] * 2


def test_who_comes_is_told_once_and_groups_by_their_workers(daemon: Daemon, workers: int) -> None:
    name = topic_of(workers - 1, workers, "group")
    with clients.connect(daemon.url, name="watcher") as watcher:
        sessions = watcher.subscribe("$sys/sessions")
        groups = watcher.subscribe("$sys/groups/#")
        one = watcher.subscribe(f"$sys/groups/{name}")
        with (
            clients.connect(daemon.url, name="visitor") as visitor,
            visitor.subscribe("#"),
            visitor.group(name, world_size=1, timeout_s=PATIENCE_S),
        ):
            assert groups.next(PATIENCE_S).topic == one.next(PATIENCE_S).topic == f"$sys/groups/{name}"
        told = [sessions.next(PATIENCE_S).value for _ in range(2)]
        assert [(each["event"], each["name"]) for each in told] == [("opened", "visitor"), ("closed", "visitor")]
        watcher.flush(PATIENCE_S)
        assert sessions.pending == 0


def test_pressure_is_told_of_each_topic_and_announced(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, clients.connect(daemon.url, name="slow") as slow:
        announced = bus.subscribe("$sys/pressure")
        full: list[clients.Subscription] = []
        for topic in TOPICS[:4]:
            full.append(slow.subscribe(topic, queue_messages=1))
            publish_until_held_back(bus, topic)
            assert bus.pressure(topic, timeout_s=PATIENCE_S).blocked_publishers == 1
            assert announced.next(PATIENCE_S).value["topic"] == topic


def test_views_show_what_all_workers_have(daemon: Daemon, workers: int) -> None:
    with clients.connect(daemon.url, name="viewer") as bus:
        for topic in TOPICS:
            bus.publish(topic, 1)
        bus.flush(PATIENCE_S)
        assert {item["name"] for item in view(bus, "topics")} >= set(TOPICS)
        assert [item["name"] for item in view(bus, "sessions")] == ["viewer"] * workers
        assert len(view(bus, "server")) == workers
        assert [item["worker"] for item in view(bus, "server")] == list(range(workers))
        assert len(view(bus, "topics", items_max=3)) == 3


def test_commands_show_all_workers_as_one_broker(daemon: Daemon, workers: int) -> None:
    with clients.connect(daemon.url, name="publisher") as bus:
        for topic in TOPICS:
            bus.publish(topic, 1, ack="accepted")
        with bus.group(topic_of(workers - 1, workers, "group"), world_size=1, timeout_s=PATIENCE_S):
            status, output, errors = run("top", "--once", "--interval", "0.1", "--json", "--url", daemon.url)
            assert status == 0, errors
            shown = json.loads(output)
            assert {each["name"] for each in shown["topics"]} == set(TOPICS)
            assert shown["topics_open"] == len(TOPICS)
            assert len(shown["groups"]) == 1
            assert run("groups", daemon.url)[0] == 0
            status, output, errors = run("stuck", daemon.url)
            assert (status, output) == (0, "nothing is stuck in 1 group\n"), errors


# The asynchronous client.


def test_the_asynchronous_client_does_the_same(daemon: Daemon, workers: int) -> None:
    async def work() -> None:
        async with await aio.connect(daemon.url) as bus, await aio.connect(daemon.url) as reader:
            every = await reader.subscribe("gradients/#")
            handled: list[str] = []
            done, inside = asyncio.Event(), [0]

            async def handle(message: clients.Message) -> None:
                inside[0] += 1
                assert inside[0] == 1
                await asyncio.sleep(0)
                inside[0] -= 1
                handled.append(message.topic)
                if len(handled) == 5 * len(TOPICS):
                    done.set()

            await reader.subscribe("gradients/#", handler=handle)
            for number in range(5):
                for topic in TOPICS:
                    await bus.publish(topic, number)
            await bus.flush(PATIENCE_S)
            seen: dict[str, list[int]] = {topic: [] for topic in TOPICS}
            for _ in range(5 * len(TOPICS)):
                message = await every.next(PATIENCE_S)
                seen[message.topic].append(message.value)
            assert seen == {topic: list(range(5)) for topic in TOPICS}
            async with asyncio.timeout(PATIENCE_S):
                await done.wait()
            assert Counter(handled) == Counter(5 * TOPICS)
            with pytest.raises(clients.TimeoutError):
                await every.next(0.01)

            waiting = asyncio.create_task(every.next(PATIENCE_S))
            await asyncio.sleep(0)
            await bus.publish(topic_of(workers - 1, workers, "gradients"), "woken", urgent=True)
            assert (await waiting).value == "woken"

            await reader.respond("answers/+", lambda request: request.value + 1)
            for number in range(6):
                assert (await bus.request(f"answers/{number}", number, timeout_s=PATIENCE_S)).value == number + 1
                replies = bus.request_many(f"answers/{number}", number, timeout_s=PATIENCE_S)
                assert [reply.value async for reply in replies] == [number + 1]
            with pytest.raises(clients.InvalidValue):
                bus.request_many("answers/1", max_replies=0)

            for worker in range(workers):
                name = topic_of(worker, workers, "group")
                joined = await asyncio.gather(*(each.group(name, world_size=2) for each in (bus, reader)))
                arrays = [np.ones(10), np.ones(10)]
                await asyncio.gather(*(each.all_reduce(array) for each, array in zip(joined, arrays, strict=True)))
                assert [array[0] for array in arrays] == [2.0, 2.0]

    asyncio.run(work())


def test_a_subscription_or_a_client_whose_close_is_cancelled_is_closed_at_every_worker(daemon: Daemon) -> None:
    async def work() -> list[str]:
        bus = await aio.connect(daemon.url, name="reader")
        for turns in range(8):
            every = await bus.subscribe("#")
            await cancelled(every.close(), turns)
        await bus.flush(PATIENCE_S)
        with clients.connect(daemon.url) as watcher:
            assert [each["subscriptions"] for each in view(watcher, "sessions") if each["name"] == "reader"]
            assert not any(each["subscriptions"] for each in view(watcher, "sessions"))
            await cancelled(bus.close(), 1)
            wait_until(lambda: not any(each["name"] == "reader" for each in view(watcher, "sessions")))
        return [task.get_coro().__qualname__ for task in asyncio.all_tasks()]

    async def cancelled(call: Coroutine[object, None, None], turns: int) -> None:
        task = asyncio.create_task(call)
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    assert len(asyncio.run(work())) == 1


def test_the_owner_is_what_all_agree_on(workers: int) -> None:
    assert {owner(topic, workers) for topic in TOPICS} == set(range(workers))


def test_in_a_forked_child_the_client_is_closed_for_every_worker_and_nothing_is_waited_for() -> None:
    with Daemon("--workers", str(WORKERS), admin="off") as daemon:
        with Process(daemon.url, module="tests.system.forking_at_workers") as process:
            lines = process.read_rest().decode().splitlines()
            assert process.wait() == 0
        assert lines[:4] == [f"child: {FORKED}"] * 4
        assert lines[4:] == ["parent: 0", "parent: 1"]
