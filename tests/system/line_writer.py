"""A publisher in a process of its own, whose topic gets a line: publishes numbers one by one, and tells of each.

    python -m tests.system.line_writer URL TOPIC COUNT

It says `line` when it has one, and a line with the last number whenever it has published another hundred. COUNT 0 goes
on until it is killed.
"""

from __future__ import annotations

import itertools
import sys

import clients

TELL_MESSAGES = 100


def main(url: str, topic: str, count: str) -> None:
    with clients.connect(url, name="writer") as bus:
        told = False
        for number in range(int(count)) if int(count) else itertools.count():
            bus.publish(topic, number, urgent=True)
            if not told and number >= 8:
                bus.flush()
                told = bus._core.outgoing.topics[topic].line is not None
                if told:
                    print("line", flush=True)
            if number % TELL_MESSAGES == TELL_MESSAGES - 1:
                print(number, flush=True)
        bus.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
