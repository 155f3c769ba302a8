"""A subscriber in a process of its own, which tells of what it has read.

python -m tests.system.line_reader URL TOPIC
"""

from __future__ import annotations

import sys

import clients

TELL_MESSAGES = 100


def main(url: str, topic: str) -> None:
    with clients.connect(url, name="line-reader") as bus, bus.subscribe(topic, queue_messages=1000) as subscription:
        print("subscribed", flush=True)
        for count, message in enumerate(subscription, 1):
            if message.value == "end":
                print("end", count, flush=True)
                return
            if message.sequence != count:
                print("out of order", message.sequence, count, flush=True)
            if not count % TELL_MESSAGES:
                print(count, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
