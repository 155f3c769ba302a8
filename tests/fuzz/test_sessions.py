"""Recorded conversations, mutated, against a live daemon: good clients beside lose nothing, and it goes on.

`python -m tests.fuzz.sessions --seconds N` does the same for as long as one likes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from broker.protocol.frames import Kind
from tests.daemon import Daemon
from tests.fuzz.conversations import kinds, record
from tests.fuzz.sessions import fuzz

CONVERSATIONS = 150
NOT_SAID = {
    Kind.RESUME, Kind.DROPPED, Kind.STREAM_ABORT, Kind.BOARD, Kind.LINKS, Kind.COMMITTED, Kind.GIVE_UP, Kind.OPERATIONS,
    Kind.FINISHED,
}  # fmt: skip
"""What only clients in trouble say, and ranks on several hosts."""
OF_THE_BROKER = {
    Kind.DELIVER, Kind.DONE, Kind.ERROR, Kind.JOINED, Kind.RESULT, Kind.FAILED, Kind.CHANGED, Kind.GAP, Kind.POLICY,
    Kind.TOOK_PART,
}  # fmt: skip
ONLY_BESIDE_DESCRIPTORS = {
    Kind.ARENA, Kind.MAPPED, Kind.RELEASE, Kind.LINE, Kind.DRAIN, Kind.ATTACH, Kind.BELL,
}  # fmt: skip
RARELY = {Kind.PING, Kind.PONG, Kind.REGROUP, Kind.OPERATIONS, Kind.MEASURED}


@pytest.mark.timeout(180)
def test_good_clients_lose_nothing_beside_bad_ones() -> None:
    outcome = fuzz(seed=3, conversations=CONVERSATIONS)
    assert outcome.faults == []
    assert outcome.conversations == CONVERSATIONS
    assert min(outcome.counts.values()) > 0


def test_the_recorded_conversations_hold_all_that_clients_say() -> None:
    with tempfile.TemporaryDirectory() as folder, Daemon(admin="off") as daemon:
        said = kinds(record(daemon.url, Path(folder)))
    missing = set(Kind) - said - OF_THE_BROKER - NOT_SAID - ONLY_BESIDE_DESCRIPTORS - RARELY
    assert missing == set()
