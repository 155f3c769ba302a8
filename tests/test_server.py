"""The daemon's loop: that what goes wrong once does not go wrong for ever."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

import clients
from broker.config import ADMIN_OFF, Config
from broker.server import Server
from tests.clients.serving import ServingThread
from tests.system.workers import wait_until

PATIENCE_S = 60.0
YEAR_NS = 365 * 86_400 * 10**9


def test_a_fault_in_one_tick_is_logged_and_the_next_ones_come(caplog: pytest.LogCaptureFixture) -> None:
    async def ticks() -> int:
        server = Server(Config(listen=("tcp://127.0.0.1:0",), admin=ADMIN_OFF))
        seen, enough, changed = 0, asyncio.Event(), server.admission.changed

        def fail_once(now_ns: int) -> bool:
            nonlocal seen
            seen += 1
            if seen == 2:
                raise RuntimeError("a fault of the state's")
            if seen == 4:
                enough.set()
            return bool(changed(now_ns))

        server.admission.changed = fail_once
        server.start(server.config.listen)
        try:
            await asyncio.wait_for(enough.wait(), PATIENCE_S)
        finally:
            await server.stop()
        return seen

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(ticks()) >= 4
    (record,) = [record for record in caplog.records if record.getMessage() == "server.fault"]
    assert record.exc_info is not None
    assert "a fault of the state's" in caplog.text


def test_the_brokers_own_messages_have_the_right_time_after_the_clock_was_set() -> None:
    with ServingThread("tcp://127.0.0.1:0") as broker, clients.connect(broker.url) as bus:
        sessions = bus.subscribe("$sys/sessions")

        def was_set() -> list[int]:
            # As if the wall clock had been a year behind when the broker began, and were right now.
            for tenant in broker.server.state.tenants.values():
                tenant.wall_offset_ns -= YEAR_NS
            return [tenant.wall_offset_ns for tenant in broker.server.state.tenants.values()]

        def now() -> list[int]:
            return [tenant.wall_offset_ns for tenant in broker.server.state.tenants.values()]

        wrong = broker.call(was_set)
        wait_until(lambda: broker.call(now) != wrong)
        clients.connect(broker.url).close()
        assert abs(sessions.next(PATIENCE_S).published_ns - time.time_ns()) < YEAR_NS // 365
