"""A broker that is watched as in production: `python -m bench.watched ADDRESS`.

It has its HTTP interface on, its metrics are scraped once a second, and one dashboard is open. Whoever does that
is a process of its own, which ends with the broker.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import sys
import threading
import time
from typing import Final

SCRAPE_INTERVAL_S: Final = 1.0


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        port: int = finder.getsockname()[1]
        return port


def scrape(port: int) -> None:
    """Asks for the metrics once; nothing when the broker does not listen yet."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SCRAPE_INTERVAL_S)
        connection.request("GET", "/metrics")
        connection.getresponse().read()
        connection.close()


def look(port: int, broker: int) -> None:
    """Keeps a dashboard's stream of events open while the broker lives."""
    while os.getppid() == broker:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2 * SCRAPE_INTERVAL_S)
            connection.request("GET", "/api/v1/events")
            answer = connection.getresponse()
            while answer.readline() and os.getppid() == broker:
                pass
        time.sleep(SCRAPE_INTERVAL_S / 10)


def watch(port: int, broker: int) -> None:
    """Watches a broker, the parent of this process, until it is gone."""
    threading.Thread(target=look, args=(port, broker), daemon=True).start()
    while os.getppid() == broker:
        scrape(port)
        time.sleep(SCRAPE_INTERVAL_S)


def main(address: str) -> None:
    port, broker = free_port(), os.getpid()
    if not os.fork():
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(nowhere, descriptor)
        watch(port, broker)
        os._exit(0)
    command = [sys.executable, "-m", "broker", "serve", "--listen", address, "--admin", f"127.0.0.1:{port}"]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main(sys.argv[1])
