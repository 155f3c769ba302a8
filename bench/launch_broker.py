"""Runs a tensorbus broker without its command line: `python -m bench.launch_broker ADDRESS`."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from broker.config import ADMIN_OFF, Config
from broker.server import Server


async def serve(address: str) -> None:
    """Serves until the process is ended."""
    server = Server(Config(listen=(address,), admin=ADMIN_OFF))
    server.start(server.config.listen)
    for listener in server.listeners:
        print(f"listening on {listener.address}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
