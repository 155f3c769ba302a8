"""How subscriptions of queue groups take up work on acknowledged topics."""

from __future__ import annotations

from broker.errors import LimitExceeded
from broker.limits import WORK_GROUPS_MAX
from broker.state.delivery import Subscription
from broker.state.singles import opened
from broker.state.topics import Router, TopicRecord
from broker.state.works import Work


def enlist(router: Router, subscription: Subscription, replay: int | str | None) -> None:
    """A subscription of a queue group begins to work on the jobs of acknowledged topics.

    Where its group is new, the jobs begin with what the topic's ring still holds, or with what `replay` asks for.
    """
    if router.works.enlist(subscription):
        for topic in _acknowledged(router, subscription.filter):
            is_new = subscription.queue_group not in topic.works
            router.routes(topic)
            if is_new:
                _begin(router, topic, topic.works[subscription.queue_group], replay)
    worker = subscription.worker
    assert worker is not None
    router.works.room(worker)


def check_group(router: Router, group: str, topic_filter: str) -> None:
    """Refuses a queue group that is one too many on an acknowledged topic; those that are over make room.

    Raises:
        LimitExceeded: it is.
    """
    for topic in _acknowledged(router, topic_filter):
        if group not in topic.works and len(topic.works) >= WORK_GROUPS_MAX:
            over = [work for work in topic.works.values() if work.is_over]
            topic.works = {name: work for name, work in topic.works.items() if not work.is_over}
            for work in over:
                router.ended.add_work(work)
            router.works.forget(over)
            topic.routes = None
            if len(topic.works) >= WORK_GROUPS_MAX:
                raise LimitExceeded("work_groups_max", len(topic.works) + 1, WORK_GROUPS_MAX)


def _acknowledged(router: Router, topic_filter: str) -> list[TopicRecord]:
    return [record for record in router.matching(topic_filter) if record.policy.acknowledge]


def _begin(router: Router, topic: TopicRecord, work: Work, replay: int | str | None) -> None:
    kept = topic.ring.last() if replay == "latest" else topic.ring.since(replay if isinstance(replay, int) else 0)
    jobs = [single for message in kept for single in opened(message)]
    if replay == "latest":
        jobs = jobs[-1:]
    for message in jobs:
        if isinstance(replay, int) and message.sequence < replay:
            continue
        if message.stream is not None and not message.stream.complete:
            router.hold(topic, message)
        else:
            router.works.add(work, message)
