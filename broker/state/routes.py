"""Where the messages of a topic go, found once for as long as the subscriptions stay the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.topics.messages import Message

if TYPE_CHECKING:
    from broker.state.delivery import Subscription
    from broker.state.works import Work


class Routes:
    """Where the messages of a topic go: to each of `everyone`, and to one of each queue group.

    Of an acknowledged topic the queue groups are `works`, whose members get messages when they have room.
    """

    __slots__ = ("everyone", "queue_groups", "responds", "version", "works")

    def __init__(
        self,
        version: int,
        everyone: tuple[Subscription, ...] = (),
        queue_groups: tuple[tuple[Subscription, ...], ...] = (),
        works: tuple[Work, ...] = (),
        *,
        responds: bool = False,
    ) -> None:
        self.version = version
        self.everyone = everyone
        self.queue_groups = queue_groups
        self.works = works
        self.responds = responds

    def same(self, other: Routes) -> bool:
        """Whether messages go to the same."""
        return (
            self.version == other.version
            and self.everyone == other.everyone
            and self.queue_groups == other.queue_groups
            and self.works == other.works
            and self.responds == other.responds
        )

    def subscriptions(self) -> list[Subscription]:
        """Those that get messages at once."""
        return [*self.everyone, *(member for group in self.queue_groups for member in group)]

    def blockers(self, message: Message | None) -> list[Subscription | Work]:
        """Who holds back a publisher that is sending a large message, or none."""
        whole: list[Subscription | Work] = [*self.subscriptions(), *self.works]
        return [each for each in whole if each.holds_back(message)]
