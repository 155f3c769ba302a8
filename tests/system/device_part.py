"""Publishes or reads arrays of a device that is a stand-in, until it is killed.

    python -m tests.system.device_part URL publish|read

It says `going` when it has done so once, in the memory of the device.
"""

from __future__ import annotations

import sys

import numpy as np

import clients
from broker import devices
from tests import device_stand_in

TOPIC = "on/device"
NUMBERS = 64 * 1024
KEPT = 3
"""Messages whose memory a reader keeps."""


def publish(bus: clients.Client) -> None:
    """Publishes arrays, each full of one number."""
    number = 0
    while True:
        number += 1
        bus.publish(TOPIC, device_stand_in.cupy().array(np.full(NUMBERS, number)))
        if number == 2:
            print("going", flush=True)


def read(bus: clients.Client) -> None:
    """Reads what comes, and keeps some of it."""
    kept: list[clients.Message] = []
    with bus.subscribe(TOPIC, device="cuda:0", overflow="drop_oldest", queue_messages=4) as subscription:
        print("subscribed", flush=True)
        for message in subscription:
            assert not is_torn(message)
            kept = [*kept, message][-KEPT:]
            if devices.copies().within == KEPT:
                print("going", flush=True)


def is_torn(message: clients.Message) -> bool:
    """Whether an array is not as a whole what was published."""
    values = message.value.peek()
    return values.shape != (NUMBERS,) or bool((values != values[0]).any())


if __name__ == "__main__":
    device_stand_in.install()
    with clients.connect(sys.argv[1]) as client:
        {"publish": publish, "read": read}[sys.argv[2]](client)
