"""What lives by a connection stays in its process, and says so to whoever wants to send it to another one."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
from collections.abc import Callable

import numpy as np
import pytest

import clients
from clients import aio
from tests.clients.ranks import embedded_url
from tests.daemon import PATIENCE_S, Daemon

WAYS: list[Callable[[object], object]] = [pickle.dumps, copy.copy, copy.deepcopy]


def refused(what: object, instead: str) -> None:
    for way in WAYS:
        with pytest.raises(TypeError, match=f"cannot be pickled or copied: it lives by a connection.*{instead}"):
            way(what)


def test_a_client_and_what_it_has_are_of_their_process() -> None:
    with clients.connect(embedded_url(), name="here") as bus:
        subscription, group = bus.subscribe("a"), bus.group("g", world_size=1)
        refused(bus, "Connect in the other process, with the same address")
        refused(subscription, "subscribe there")
        refused(group, "join the group there")
        bus.publish("a", np.arange(3))
        message = subscription.next(PATIENCE_S)
        refused(message, r"message\.topic, message\.value")
        told = pickle.loads(pickle.dumps((message.topic, message.value, message.headers)))
        assert told[0] == "a"
        assert told[1].tolist() == [0, 1, 2]
        assert bus.publish("a", 1, ack="accepted") == 2


def test_those_of_an_event_loop_are_too() -> None:
    async def work() -> None:
        async with await aio.connect(embedded_url()) as bus:
            refused(bus, "Connect in the other process")
            refused(await bus.subscribe("a"), "subscribe there")
            refused(await bus.group("g", world_size=1), "join the group there")

    asyncio.run(work())


def ask(url: str, number: int) -> object:
    with clients.connect(url) as bus:
        return bus.request("nobody" if number else "doubled", 21, timeout_s=PATIENCE_S).value


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_has_clients_of_its_own_and_their_errors_come_back(method: str) -> None:
    with Daemon(admin="off") as daemon, clients.connect(daemon.url) as bus:
        bus.respond("doubled", lambda request: request.value * 2)
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply_async(ask, (daemon.url, 0)).get(PATIENCE_S) == 42
            with pytest.raises(clients.NoResponders, match="nobody responds at 'nobody'"):
                pool.apply_async(ask, (daemon.url, 1)).get(PATIENCE_S)
