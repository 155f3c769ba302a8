"""Topics for publishers when all are used up."""

from __future__ import annotations

import pytest

from broker.errors import LimitExceeded
from broker.state.room import Room


class Full:
    """A router that has no room, and counts how often it was asked to look for some."""

    def __init__(self, topics_max: int) -> None:
        self.topics = dict.fromkeys(map(str, range(topics_max)))
        self.topics_max = topics_max
        self.looks = 0

    def topic(self, name: str) -> object:
        if name not in self.topics:
            self.looks += 1
            raise LimitExceeded("topics_max", self.topics_max + 1, self.topics_max, "use fewer topic names")
        return self.topics[name]


def refused(room: Room, names: int) -> None:
    for number in range(names):
        with pytest.raises(LimitExceeded, match="topics_max: 1001 is over the limit of 1000"):
            room.topic(f"new/{number}")


def test_topics_are_not_all_looked_through_for_each_that_there_is_no_room_for() -> None:
    router = Full(1000)
    room = Room(router)
    refused(room, 500)
    assert router.looks == 5
    # Those that are there are found all the same.
    room.topic("7")
    assert router.looks == 5


def test_when_a_topic_has_lost_its_last_publisher_it_is_looked_at_once() -> None:
    router = Full(1000)
    room = Room(router)
    refused(room, 1)
    room.left()
    refused(room, 2)
    assert router.looks == 2
    del router.topics["7"]
    router.topics["more"] = None
    del router.topics["8"]
    with pytest.raises(LimitExceeded):
        room.topic("new")
    # With fewer than there may be, the router is asked at once.
    assert router.looks == 3
