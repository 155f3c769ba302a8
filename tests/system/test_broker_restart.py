"""The daemon is killed, stopped and started again under clients that are in the middle of things."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import clients
from tests.background import in_background
from tests.collectives.processes import ATTEMPTS
from tests.daemon import Daemon

PATIENCE_S = 60.0


def kill(daemon: Daemon) -> None:
    assert daemon.process is not None
    daemon.process.kill()


def test_a_client_declares_again_what_a_new_broker_does_not_know(daemon: Daemon) -> None:
    heard = threading.Event()
    with clients.connect(daemon.url, on_reconnect=lambda event: heard.set()) as bus:
        bus.declare("limited", max_message_bytes=9, overflow="latest")
        bus.declare("cleared", max_message_bytes=9)
        bus.declare("cleared")
        bus.publish("limited", b"short")
        subscription = bus.subscribe("limited")
        kill(daemon)
        daemon.start()
        assert heard.wait(PATIENCE_S)
        with clients.connect(daemon.url) as stranger:
            with pytest.raises(clients.LimitExceeded):
                stranger.publish("limited", b"much too long", ack="accepted")
            stranger.publish("cleared", b"long enough", ack="accepted")
            for number in range(5):
                stranger.publish("limited", number)
            stranger.flush(PATIENCE_S)
        assert subscription.next(PATIENCE_S).value == 4
        with pytest.raises(clients.LimitExceeded, match="the policy of topic 'limited'"):
            bus.publish("limited", b"much too long")


def test_a_client_reconnects_subscribes_again_and_says_what_may_be_lost(daemon: Daemon) -> None:
    told: list[clients.Reconnected] = []
    heard = threading.Event()

    def on_reconnect(event: clients.Reconnected) -> None:
        told.append(event)
        heard.set()

    with clients.connect(daemon.url, name="survivor", on_reconnect=on_reconnect) as bus:
        subscription = bus.subscribe("news/#")
        for number in range(3):
            bus.publish("other", number, urgent=True)
        kill(daemon)
        daemon.start()
        assert heard.wait(PATIENCE_S)
        assert told[0].subscriptions == ("news/#",)
        assert told[0].lost_messages_max == 3
        with clients.connect(daemon.url, name="publisher") as publisher:
            publisher.publish("news/today", np.arange(100_000))
        assert subscription.next(PATIENCE_S).value[-1] == 99_999


def test_publish_waits_for_the_broker_to_come_back(daemon: Daemon) -> None:
    with clients.connect(daemon.url, name="publisher") as bus:
        kill(daemon)
        thread, outcome = in_background(lambda: bus.publish("late", 1, ack="accepted"))
        daemon.start()
        thread.join(PATIENCE_S)
        assert len(outcome) == 1
        assert outcome[0] == 1 or isinstance(outcome[0], clients.ConnectionClosed)


@pytest.mark.parametrize("waits_in", ["next", "publish", "request", "group", "all_reduce", "flush", "handler"])
def test_nothing_hangs_when_the_broker_never_comes_back(daemon: Daemon, waits_in: str) -> None:
    with clients.connect(daemon.url, name="waiting", reconnect_timeout_s=0.5) as bus:
        subscription = bus.subscribe("quiet")
        group = bus.group("alone", world_size=1, rank=0)
        bus.respond("slow", lambda message: clients.DEFERRED)
        if waits_in == "publish":
            with clients.connect(daemon.url, name="full") as full:
                full.subscribe("full", queue_messages=1)
        waits: dict[str, Callable[[], object]] = {
            "next": lambda: subscription.next(),
            "publish": lambda: [bus.publish("quiet", np.zeros(500_000), timeout_s=PATIENCE_S) for _ in range(1000)],
            "request": lambda: bus.request("slow", timeout_s=PATIENCE_S),
            "group": lambda: bus.group("never", world_size=2, timeout_s=PATIENCE_S),
            "all_reduce": lambda: [group.all_reduce(np.ones(10)) for _ in range(100_000_000)],
            "flush": lambda: [bus.flush(PATIENCE_S) for _ in range(100_000_000)],
            "handler": lambda: list(subscription),
        }
        thread, outcome = in_background(waits[waits_in])
        kill(daemon)
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"{waits_in} hangs"
        if waits_in == "handler":
            assert outcome == [[]]
        else:
            assert isinstance(outcome[0], clients.ConnectionClosed), outcome
        with pytest.raises(clients.ConnectionClosed):
            bus.publish("quiet", 1)
        with pytest.raises(clients.ConnectionClosed):
            bus.flush()


def test_a_broker_that_stops_answering_is_noticed_by_the_heartbeat() -> None:
    with Daemon("--heartbeat-interval-s", "0.2", "--heartbeat-timeout-s", "4.0", admin="off") as daemon:
        bus = clients.connect(daemon.url, name="waiting", reconnect_timeout_s=0.0)
        subscription = bus.subscribe("quiet")
        assert daemon.process is not None
        daemon.process.signal(signal.SIGSTOP)
        with pytest.raises(clients.ConnectionClosed, match="nothing heard"):
            subscription.next(PATIENCE_S)
        bus.close()


STOOD_STILL_S = 1.0
"""A machine on which a wait takes so much longer than it should may have let the client have no processor either."""


def stays_alive() -> bool | None:
    """Whether a client whose application computes for longer than its broker waits for it is there afterwards; None
    when it is not, and the machine stood still."""
    longest_s = 0.0
    with (
        Daemon("--heartbeat-interval-s", "0.2", "--heartbeat-timeout-s", "2.0", admin="off") as daemon,
        clients.connect(daemon.url, name="busy", reconnect_timeout_s=0.0) as bus,
        clients.connect(daemon.url, name="clock") as clock,
    ):
        try:
            subscription, ticks = bus.subscribe("work"), clock.subscribe("nothing")
            for _ in range(5):
                began_s = time.monotonic()
                with pytest.raises(clients.TimeoutError):
                    ticks.next(0.5)
                longest_s = max(longest_s, time.monotonic() - began_s - 0.5)
            bus.publish("work", "still here")
            return bool(subscription.next(PATIENCE_S).value == "still here")
        except clients.ConnectionClosed:
            return None if longest_s > STOOD_STILL_S else False


def test_a_client_stays_alive_while_its_application_computes() -> None:
    # Who gets no processor for as long is taken for gone, on a busy machine: then it is tried again.
    tried = (stays_alive() for _ in range(ATTEMPTS))
    assert next((alive for alive in tried if alive is not None), False)


def test_several_addresses_fail_over() -> None:
    with Daemon(admin="off") as first, Daemon(admin="off") as second:
        moved = threading.Event()
        url = f"{first.url},{second.url}"
        with clients.connect(url, name="moving", on_reconnect=lambda _: moved.set()) as bus:
            bus.publish("before", 1, ack="accepted")
            kill(first)
            assert moved.wait(PATIENCE_S)
            assert bus.publish("after", 1, ack="accepted", timeout_s=PATIENCE_S) == 1
