"""What is declared for a filter is followed by the topics that are there, a part of them at a time.

A broker has up to a hundred thousand topics, and as many publishers may have to be told. All of that at once would hold
up everybody for seconds; so the declarations wait in a line, and between two parts others have their turn. Who has
declared hears that it is done when the last topic has followed. Each topic follows what is declared at that moment, so
it does not matter what was declared meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from broker.errors import LimitExceeded
from broker.ids import SessionId
from broker.limits import DECLARATIONS_MAX
from broker.state.publishing import Publishing
from broker.state.records import SessionRecord
from broker.state.topics import Router, TopicRecord
from broker.topics.names import is_filter, matches

PART: Final = 256
"""Topics, or publishers, between which nobody else has a turn: a few milliseconds."""


class Following:
    """The declarations that topics have yet to follow."""

    def __init__(self, router: Router, publishing: Publishing, sessions: Mapping[SessionId, SessionRecord]) -> None:
        self._router = router
        self._publishing = publishing
        self._sessions = sessions
        self._waiting: deque[Iterator[None]] = deque()

    def __bool__(self) -> bool:
        return self.waits()

    def waits(self) -> bool:
        """Whether some wait. Asked after every message."""
        return len(self._waiting) > 0

    def check(self) -> None:
        """Refuses another declaration while too many wait.

        Raises:
            LimitExceeded: they do.
        """
        waiting = len(self._waiting) + 1
        if waiting > DECLARATIONS_MAX:
            raise LimitExceeded("declarations_max", waiting, DECLARATIONS_MAX, "wait for the answers to some")

    def begin(self, topic_filter: str, done: Callable[[], None]) -> None:
        """The topics that a filter matches have to follow; does a part of it, which is all when they are few.

        Args:
            topic_filter: for which something was declared.
            done: called when all have followed, and their publishers have been told.
        """
        self._waiting.append(self._follow(topic_filter, done))
        self.go_on()

    def go_on(self) -> None:
        """Does the next part."""
        if self._waiting and next(self._waiting[0], "over") == "over":
            self._waiting.popleft()

    def _follow(self, topic_filter: str, done: Callable[[], None]) -> Iterator[None]:
        topics, changed, looked_at = self._router.topics, set[TopicRecord](), 0
        for name in list(topics) if is_filter(topic_filter) else [topic_filter]:
            looked_at += 1
            if not looked_at % PART:
                yield
            topic = topics.get(name)
            if topic is not None and matches(topic_filter, name) and self._router.follow(topic):
                changed.add(topic)
        for session in list(self._sessions.values()) if changed else ():
            for publisher in list(session.publishers.values()):
                looked_at += 1
                if not looked_at % PART:
                    yield
                # It may have gone meanwhile, or its number may have been given to another one.
                if publisher.topic in changed and session.publishers.get(publisher.number) is publisher:
                    self._publishing.tell_policy(session, publisher)
        for topic in changed:
            if topic.held_back:
                self._publishing.look_again(topic)
        done()

    def __repr__(self) -> str:
        return f"<Following waiting={len(self._waiting)}>"
