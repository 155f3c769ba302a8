"""Which topic a publisher gets: its own, or none, where it has no right to it or where all topics are used up.

A topic that cannot be had is a record outside of the router: what is published there goes nowhere, and its publisher is
told why. It gets the topic with the first message for which there is room, and meanwhile its session goes on with the
topics that it has. To close the session would help nobody: its client comes back, and names all its topics again.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import LimitExceeded
from broker.security.permissions import Rights
from broker.security.roles import Verb
from broker.state.topics import INBOX, Publisher, Router, TopicRecord


class Room:
    """The topics of a router for its publishers."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._full: LimitExceeded | None = None
        """Why there was no room at the last look for topics that nobody publishes to."""
        self._refusals = 0
        """So many follow before the next look, which goes through all topics."""

    def topic(self, name: str) -> TopicRecord:
        """The record of a topic.

        Raises:
            LimitExceeded: there are too many.
        """
        router = self._router
        crowded = len(router.topics) >= router.topics_max and name not in router.topics
        if crowded and self._refusals and self._full is not None:
            self._refusals -= 1
            raise self._full.again()
        try:
            return router.topic(name)
        except LimitExceeded as error:
            self._full, self._refusals = error.again(), router.topics_max // 10
            raise

    def settle(self, publisher: Publisher, move: Callable[[Publisher, TopicRecord], None]) -> LimitExceeded | None:
        """Gives a publisher its topic that may have had none, if there is room by now; else returns why not.

        Args:
            publisher: that may publish there.
            move: gives it a topic.
        """
        name = publisher.topic.name
        if self._router.topics.get(name) is not publisher.topic:
            try:
                move(publisher, self.topic(name))
            except LimitExceeded as error:
                return error
            publisher.restricted = not all(may(publisher.session.rights, name))
        return None

    def left(self) -> None:
        """A topic has lost its last publisher: it may be one that nobody needs any more."""
        self._refusals = 0


def may(rights: Rights, topic: str) -> tuple[bool, bool]:
    """Whether somebody may publish to a topic, and whether they may request there.

    Replies go to inboxes: they are for those who may respond to something, whoever has asked them.
    """
    if not rights.limited:
        return True, True
    if topic.startswith(INBOX):
        responds = rights.rules(Verb.RESPOND)
        may_reply = responds is None or bool(responds.allow)
        return may_reply, may_reply
    return rights.may(Verb.PUBLISH, topic), rights.may(Verb.REQUEST, topic)
