"""Responders, requesters and the broker are killed in the middle of requests."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator

import pytest

import clients
from tests.background import in_background
from tests.daemon import Daemon, Process

PATIENCE_S = 60.0


@pytest.fixture
def bus(daemon: Daemon) -> Iterator[clients.Client]:
    with clients.connect(daemon.url, name="test") as client:
        yield client


def start(daemon: Daemon, what: str, *group: str, name: str = "killed") -> Process:
    process = Process(daemon.url, name, what, *group, module="tests.system.responder")
    assert process.read_line() in ("responding", "asking")
    return process


def test_a_request_to_a_killed_responder_fails_at_once(daemon: Daemon, bus: clients.Client) -> None:
    with start(daemon, "silent") as responder:
        thread, outcome = in_background(lambda: bus.request("silent", timeout_s=10 * PATIENCE_S))
        assert responder.read_line() == "asked"
        responder.kill()
        thread.join(PATIENCE_S)
        assert isinstance(outcome[0], clients.ResponderLost), outcome
        assert "killed" in outcome[0].reason
    with pytest.raises(clients.NoResponders):
        bus.request("silent", timeout_s=PATIENCE_S)


def test_a_retry_after_a_kill_goes_to_another_responder_at_once(daemon: Daemon, bus: clients.Client) -> None:
    with start(daemon, "silent", "g") as responder:
        thread, outcome = in_background(lambda: bus.request("silent", timeout_s=10 * PATIENCE_S, retries=1))
        assert responder.read_line() == "asked"
        with clients.connect(daemon.url, name="heir") as heir:
            heir.respond("silent", lambda message: "inherited", queue_group="g")
            responder.kill()
            thread.join(PATIENCE_S)
            assert [reply.value for reply in outcome] == ["inherited"]


def test_a_stream_whose_responder_is_killed_ends_with_an_error(daemon: Daemon, bus: clients.Client) -> None:
    with start(daemon, "count") as responder:
        replies = bus.request_many("count", timeout_s=None)
        got = [next(replies).value for _ in range(1000)]
        responder.kill()
        with pytest.raises(clients.ResponderLost):
            got.extend(reply.value for reply in replies)
        assert got == list(range(len(got)))


def test_a_responder_that_is_killed_in_the_middle_of_a_large_reply_is_an_error(
    daemon: Daemon, bus: clients.Client
) -> None:
    with start(daemon, "large") as responder:
        thread, outcome = in_background(lambda: bus.request("large", timeout_s=10 * PATIENCE_S))
        assert responder.read_line() == "asked"
        responder.kill()
        thread.join(PATIENCE_S)
        assert isinstance(outcome[0], (clients.ResponderLost, clients.RequestFailed)), outcome


def test_responders_that_are_killed_do_not_take_the_replies_of_the_others_along(
    daemon: Daemon, bus: clients.Client
) -> None:
    processes = [start(daemon, "silent", name=f"shard-{number}") for number in range(2)]
    try:
        with clients.connect(daemon.url, name="alive") as alive:
            alive.respond("silent", lambda message: "alive")
            replies = bus.request_many("silent", timeout_s=None)
            assert next(replies).value == "alive"
            for process in processes:
                assert process.read_line() == "asked"
                process.kill()
            with pytest.raises(clients.ResponderLost):
                next(replies)
    finally:
        for process in processes:
            process.close()


@pytest.mark.parametrize("what", ["ask", "gather"])
def test_a_killed_requester_stops_its_responders(daemon: Daemon, bus: clients.Client, what: str) -> None:
    asked, stopped = threading.Event(), threading.Event()

    def silent(request: clients.Request) -> object:
        request.on_cancel(stopped.set)
        asked.set()
        return clients.DEFERRED

    def count(request: clients.Request) -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            stopped.set()

    bus.respond("silent", silent)
    bus.respond("count", count)
    process = Process(daemon.url, "killed", what, module="tests.system.responder")
    with process:
        if what == "ask":
            assert asked.wait(PATIENCE_S)
        else:
            assert process.read_line() == "0"
            assert stopped.wait(PATIENCE_S), "leaving the iteration stops it"
            stopped.clear()
            assert process.read_line() == "holding"
        process.kill()
        assert stopped.wait(PATIENCE_S)


def test_a_retry_after_a_restart_of_the_broker_runs_the_function_once(daemon: Daemon, bus: clients.Client) -> None:
    kept: queue.Queue[clients.Request] = queue.Queue()
    runs: list[str] = []
    back = threading.Event()

    def function(request: clients.Request) -> object:
        runs.append(request.topic)
        kept.put(request)
        return clients.DEFERRED

    with clients.connect(daemon.url, name="responder", on_reconnect=lambda _: back.set()) as responder:
        responder.respond("slow", function)
        watched = responder.subscribe("slow")
        thread, outcome = in_background(lambda: bus.request("slow", timeout_s=1.0, retries=100))
        request = kept.get(timeout=PATIENCE_S)
        daemon.kill()
        daemon.start()
        assert back.wait(PATIENCE_S)
        numbers = {watched.next(PATIENCE_S).body.request for _ in range(3)}
        assert len(numbers) == 1
        # A request to the same responder shows that the repeated one was looked at.
        responder.respond("probe", lambda message: "seen")
        assert responder.request("probe", timeout_s=PATIENCE_S).value == "seen"
        request.reply("once")
        thread.join(PATIENCE_S)
        assert [reply.value for reply in outcome] == ["once"]
        assert runs == ["slow"]


def test_a_reply_that_was_lost_is_sent_again_without_running_the_function(daemon: Daemon, bus: clients.Client) -> None:
    runs: list[str] = []
    killed = threading.Event()

    with clients.connect(daemon.url, name="responder") as responder:

        def function(request: clients.Request) -> object:
            runs.append(request.topic)
            daemon.kill()
            killed.set()
            return "the only reply"

        responder.respond("slow", function)
        thread, outcome = in_background(lambda: bus.request("slow", timeout_s=2.0, retries=100))
        assert killed.wait(PATIENCE_S)
        daemon.start()
        thread.join(PATIENCE_S)
        assert [reply.value for reply in outcome] == ["the only reply"]
        assert runs == ["slow"]


def test_a_request_with_retries_outlives_its_responder(daemon: Daemon, bus: clients.Client) -> None:
    with start(daemon, "silent") as responder:
        thread, outcome = in_background(lambda: bus.request("silent", timeout_s=PATIENCE_S, retries=1))
        assert responder.read_line() == "asked"
        responder.kill()
    with clients.connect(daemon.url, name="heir") as heir:
        heir.respond("silent", lambda message: "inherited")
        thread.join(PATIENCE_S)
        assert [reply.value for reply in outcome] == ["inherited"]
