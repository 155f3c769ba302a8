"""The daemon's loop: that what goes wrong once does not go wrong for ever."""

from __future__ import annotations

import asyncio
import logging

import pytest

from broker.config import ADMIN_OFF, Config
from broker.server import Server

PATIENCE_S = 60.0


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
