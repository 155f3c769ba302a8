"""A program that has many clients and ends when it is interrupted; see test_lifetime."""

from __future__ import annotations

import signal
import sys

import clients

ended = []
signal.signal(signal.SIGINT, lambda number, frame: ended.append(number))
crowd = [clients.connect(sys.argv[1], name=f"client-{number}") for number in range(100)]
print("connected", flush=True)
while not ended:
    signal.sigtimedwait([signal.SIGTERM], 0.05)
for bus in crowd:
    bus.publish("never/read", b"x" * 1000)
