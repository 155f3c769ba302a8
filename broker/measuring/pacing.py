"""Sending at a steady rate, and when each message counts as begun.

Message i is due at start + i / rate, whatever happened to the ones before. If the call for one of them has not returned
by then, message i counts from the time at which it was due, so that a broker that stalls is charged for every message
that it delays (coordinated omission). If the sender was asleep and woke late, which is the timer's doing and not the
broker's, message i counts from the wake-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


def send_paced(
    send: Callable[[bytes], object], cycle: Sequence[bytes], count: int, rate_hz: float, delay_s: float
) -> list[int]:
    """Sends messages at a steady rate.

    Args:
        send: publishes one message.
        cycle: message i is element i, over and over.
        count: how many.
        rate_hz: messages per second.
        delay_s: how long from now to the first one.

    Returns:
        When each message counts as begun, on CLOCK_MONOTONIC in nanoseconds.
    """
    clock, length, interval_ns = time.monotonic_ns, len(cycle), 1e9 / rate_hz
    began_ns = []
    start_ns = clock() + int(delay_s * 1e9)
    for index in range(count):
        due_ns = start_ns + int(index * interval_ns)
        now_ns = clock()
        if now_ns < due_ns:
            time.sleep((due_ns - now_ns) / 1e9)
            due_ns = clock()
        send(cycle[index % length])
        began_ns.append(due_ns)
    return began_ns
