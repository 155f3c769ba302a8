"""A client in a process of its own that answers or asks, and prints what it sees, until it is killed."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator

import numpy as np

import clients


def say(text: str) -> None:
    print(text, flush=True)


def silent(message: clients.Request) -> object:
    say("asked")
    return clients.DEFERRED


def count(message: clients.Request) -> Iterator[int]:
    yield from itertools.count()


def large(message: clients.Request) -> object:
    say("asked")
    return np.zeros(100_000_000, np.float32)


def quick(message: clients.Request) -> object:
    return "quick"


FUNCTIONS = {"silent": silent, "count": count, "large": large, "quick": quick}


def main(url: str, name: str, what: str) -> None:
    with clients.connect(url, name=name) as bus:
        if what == "ask":
            say("asking")
            bus.request("silent", timeout_s=60.0)
        elif what == "hammer":
            while not ("a" in bus._core.outgoing.topics and bus._core.outgoing.topics["a"].line is not None):
                bus.request("a", "loop", timeout_s=60.0)
                bus.flush()
            say("line")
            bus.request("a", "silent", timeout_s=60.0)
        elif what == "gather":
            for reply in bus.request_many("count", timeout_s=None):
                say(str(reply.value))
                break
            replies = bus.request_many("count", timeout_s=None)
            next(replies)
            say("holding")
            threading.Event().wait()
        else:
            bus.respond(what, FUNCTIONS[what], queue_group=sys.argv[4] if len(sys.argv) > 4 else None)
            say("responding")
            threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3])
