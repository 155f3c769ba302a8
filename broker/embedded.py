"""A broker inside the process: what `clients.connect("inproc://name")` starts when nobody listens there.

It runs on a thread of its own, which ends when its last client has gone; so does all that the broker knew.
"""

from __future__ import annotations

import asyncio
import threading

import uvloop

from broker.answers import show_to_clients
from broker.config import ADMIN_OFF, Config
from broker.errors import BrokerError
from broker.server import Server


def start(name: str) -> None:
    """Starts a broker that listens at inproc://name; it does when this returns.

    Raises:
        ListenError: somebody else has begun to listen there meanwhile.
    """
    started = threading.Event()
    failures: list[BrokerError] = []

    async def serve() -> None:
        server = Server(Config(listen=(f"inproc://{name}",), admin=ADMIN_OFF, name=f"embedded-{name}"))
        show_to_clients(server)
        try:
            server.start(server.config.listen)
        except BrokerError as error:
            failures.append(error)
            return
        finally:
            started.set()
        await server.busy.wait()
        while not server.retire():
            await server.idle.wait()
            # Somebody may be waiting to be accepted, which takes a turn of the loop.
            await asyncio.sleep(0)
        await server.stop()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    threading.Thread(target=run, name=f"tensorbus-broker-{name}", daemon=True).start()
    started.wait()
    if failures:
        raise failures[0]
