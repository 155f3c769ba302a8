"""What all topics have counted and hold: one pass over them, as short as it can be.

A broker may have 131,072 topics, and no message is routed while it counts. Whoever scrapes it or looks at it does so
again and again, so everything that is asked of all topics is found in one pass, which is compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.state.totals import SYSTEM_TOPICS, Totals

if TYPE_CHECKING:
    from broker.state.topics import TopicRecord
    from broker.state.works import Work


class Census:
    """What topics hold, all together.

    Attributes:
        topics: of clients: without the broker's own and the inboxes.
        retained_bytes: that they keep for replay, the broker's own too.
        held_back: publishers that wait for a slow subscriber, on each of their topics.
        works: queue groups with acknowledgement.
    """

    def __init__(self) -> None:
        self.topics = 0
        self.retained_bytes = 0
        self.held_back = 0
        self.works: list[Work] = []

    def count(self, topics: dict[str, TopicRecord], totals: Totals) -> None:
        """Adds some topics, and to `totals` what was published to them and what became of their jobs.

        What was published to the broker's own topics is not counted.
        """
        own = published = published_bytes = refused = retained_bytes = held_back = 0
        for name, topic in topics.items():
            retained_bytes += topic.ring.held_bytes
            if topic.held_back:
                held_back += len(topic.held_back)
            if topic.works:
                self.works.extend(topic.works.values())
            if name.startswith("$"):
                own += 1
                if name.startswith(SYSTEM_TOPICS):
                    continue
            published += topic.published
            published_bytes += topic.published_bytes
            refused += topic.refused
        self.topics += len(topics) - own
        self.retained_bytes += retained_bytes
        self.held_back += held_back
        totals.published_messages += published
        totals.published_bytes += published_bytes
        totals.refused_messages += refused

    def add(self, other: Census) -> None:
        """Adds another one."""
        self.topics += other.topics
        self.retained_bytes += other.retained_bytes
        self.held_back += other.held_back
        self.works += other.works

    def __repr__(self) -> str:
        return f"<Census topics={self.topics} held_back={self.held_back}>"
