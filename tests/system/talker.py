"""A publisher in a process of its own: publishes numbers until it is killed, and writes down each that was confirmed.

python -m tests.system.talker URL none|flush|accepted
"""

from __future__ import annotations

import itertools
import sys

import clients

TOPIC = "numbers"
FLUSH_MESSAGES = 100


def main(url: str, level: str) -> None:
    with clients.connect(url, name="talker") as bus:
        for number in itertools.count():
            bus.publish(TOPIC, number, ack="accepted" if level == "accepted" else None)
            if level == "accepted":
                print(number, flush=True)
            elif number % FLUSH_MESSAGES == FLUSH_MESSAGES - 1:
                if level == "flush":
                    bus.flush()
                print(number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
