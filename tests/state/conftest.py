"""Who shares memory, in a broker without a ring."""

from __future__ import annotations

import pytest

from tests.state.harness import Talk
from tests.state.sharers import Sharer


@pytest.fixture
def talk() -> Talk:
    # No ring: what it keeps is a matter of its own.
    return Talk(ring_messages=0)


@pytest.fixture
def publisher(talk: Talk) -> Sharer:
    return Sharer(talk, "publisher", arena=True)


@pytest.fixture
def reader(talk: Talk, publisher: Sharer) -> Sharer:
    """A reader of `a` that has mapped the publisher's arena."""
    reader = Sharer(talk, "reader")
    reader.peer.subscribe("a")
    publisher.publish("a", b"first")
    reader.read(1)
    reader.release(*reader.leases())
    assert publisher.back() == [1]
    reader.peer.frames.clear()
    publisher.peer.frames.clear()
    return reader
