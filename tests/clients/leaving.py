"""A program that publishes and ends without a word; see test_lifetime."""

from __future__ import annotations

import sys

import clients

bus = clients.connect(sys.argv[1])
for number in range(2000):
    bus.publish("numbers", number)
