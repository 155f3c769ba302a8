"""Topics in the broker: who gets a message, what is kept of it, and how far publishers may run ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from broker.errors import LimitExceeded
from broker.limits import LINE_AFTER_MESSAGES, RETAINED_BYTES_MAX, TOPICS_MAX
from broker.protocol.bodies import PublishPolicy
from broker.protocol.frames import Flag
from broker.state.dead_letters import dead_letter
from broker.state.delivery import Subscription
from broker.state.routes import Routes
from broker.state.singles import singles
from broker.state.totals import Totals
from broker.state.works import Work, Works
from broker.topics.declarations import Policies
from broker.topics.marks import Marks
from broker.topics.messages import Message
from broker.topics.names import check_filter, is_filter, matches
from broker.topics.policy import DEAD_LETTERS, Overflow, TopicPolicy
from broker.topics.ring import Ring
from broker.topics.trie import Trie
from broker.topics.work import Job

if TYPE_CHECKING:
    from broker.state.records import SessionRecord
    from broker.state.topic_line import TopicLine

INBOX: Final = "$inbox/"
NOTHING_KEPT: Final = TopicPolicy(ring_messages=0, ring_bytes=0)
_NO_WORKS: Final[Mapping[str, Work]] = MappingProxyType({})
_NOTHING_TOLD: Final = PublishPolicy()
_BLOCK = Overflow.BLOCK
_NEVER_FORGOTTEN: Final = ("$sys/sessions", "$sys/pressure")
"""Of the broker's own topics; there is one for each group that ever was as well."""


class TopicRecord:
    """One topic.

    Attributes:
        policy: what holds for it.
        publishers: sessions that have named the topic.
        special: whether its policy changes what arrives: moves it to another lane, or refuses what is too long.
        published: messages that were published to it, ever.
        refused: messages that were longer than the policy allows, ever.
        held_back: publishers without credit because a subscription is over its limit.
        marks: which of its messages was the first after a subscription began.
        marked: the moment of the newest mark.
        line: on which its publisher writes to its readers itself, if it has one.
        works: its queue groups with acknowledgement, by name; they stay when their members go.
        arriving: large messages that become jobs when they are complete; they are held until then.
    """

    __slots__ = (
        "arriving", "held_back", "line", "marked", "marks", "name", "policy", "published", "published_bytes",
        "publishers", "refused", "ring", "routes", "special", "works",
    )  # fmt: skip

    def __init__(self, name: str, policy: TopicPolicy) -> None:
        self.name = name
        self.ring = Ring.of(policy)
        self.marks = Marks()
        self.marked = 0
        self.policy = policy
        self.special = _is_special(policy)
        self.routes: Routes | None = None
        self.line: TopicLine | None = None
        # Tuples, because an empty one takes no memory, and these are empty in nearly all topics.
        self.held_back: tuple[Publisher, ...] = ()
        self.publishers = 0
        self.published = 0
        self.published_bytes = 0
        self.refused = 0
        self.works: Mapping[str, Work] = _NO_WORKS
        self.arriving: tuple[Message, ...] = ()

    @property
    def has_jobs(self) -> bool:
        """Whether somebody is to work on something that was published here."""
        return bool(self.arriving) or any(work.queue.held for work in self.works.values())

    def follow(self, policy: TopicPolicy) -> int:
        """Takes over another policy; returns by how many bytes more is retained, 0 or below."""
        self.policy = policy
        self.special = _is_special(policy)
        # They depend on whether its queue groups acknowledge.
        self.routes = None
        return self.ring.follow(policy)

    def __repr__(self) -> str:
        return f"<TopicRecord {self.name!r} {self.ring!r}>"


def _is_special(policy: TopicPolicy) -> bool:
    return policy.lane != "default" or policy.max_message_bytes is not None


class Publisher:
    """A session's right to publish to a topic.

    Attributes:
        session: whose right it is.
        number: the session's number for the topic.
        sender: the session's name.
        used_messages: of its window, until it gets credit for them; at the end by at most a batch more.
        used_bytes: the same; by at most a frame more.
        message: the large message that is arriving, if one is.
        acknowledge: the reference of the DONE that is due when it is complete, 0 for none.
        request: the request to which it is the last reply, 0 for none.
        until_line: messages until it is looked whether the topic can have a line.
        line_after: how many they are the next time.
        told: what of the topic's policy it has been told.
        refusal_told: whether it has been told, since then, that a message was refused.
        restricted: whether it may not publish to the topic, or may not request.
    """

    __slots__ = (
        "acknowledge", "held_back", "line_after", "message", "number", "refusal_told", "request", "restricted",
        "sender", "session", "told", "topic", "until_line", "used_bytes", "used_messages",
    )  # fmt: skip

    def __init__(self, topic: TopicRecord, number: int, session: SessionRecord) -> None:
        self.topic = topic
        self.number = number
        self.session = session
        self.sender = session.name
        # Used, and not left: small numbers are shared objects, and most topics have few messages.
        self.used_messages = 0
        self.used_bytes = 0
        self.held_back = False
        self.message: Message | None = None
        self.acknowledge = 0
        self.request = 0
        self.told: PublishPolicy | None = _NOTHING_TOLD
        self.refusal_told = False
        self.until_line = self.line_after = LINE_AFTER_MESSAGES
        self.restricted = False


class Router:
    """All topics and all subscriptions.

    Attributes:
        policies: what was declared for topics.
        retained_bytes: held by all rings.
        topics_max: topics that may be there.
        moment: how many subscriptions have begun, and one; see topics/marks.py.
        ended: what topics, subscriptions and sessions had counted that are gone.
        works: the queue groups of acknowledged topics.
        lines: those that are in use, by their numbers.
        on_moved: told of a request that waited for a subscription that has ended, and which one it waits for now.
    """

    def __init__(self, policies: Policies, *, clock: Callable[[], int], unblock: Callable[[Work], None]) -> None:
        """Args:
        policies: what holds for which topic.
        clock: the time of the event that is being dealt with, in nanoseconds.
        unblock: called when a work that holds back publishers is under its limit again.
        """
        self.policies = policies
        self.topics: dict[str, TopicRecord] = {}
        self.retained_bytes = 0
        self.topics_max = TOPICS_MAX
        self.ended = Totals()
        self.moment = 1
        self._first_sequence = 1
        self.works = Works(clock=clock, bury=self._bury, unblock=unblock)
        self.on_moved: Callable[[Message, Subscription, Subscription | None], None] = lambda message, old, new: None
        self.lines: dict[int, TopicLine] = {}
        self._trie: Trie[Subscription] = Trie()
        self._version = self._trie.version  # As a number of this class.
        self._inboxes: dict[str, Subscription] = {}
        self._newest_routes = Routes(0)

    def topic(self, name: str) -> TopicRecord:
        """The record of a topic, which comes into being when it is first asked for.

        Raises:
            LimitExceeded: there are too many topics.
        """
        record = self.topics.get(name)
        if record is None:
            if len(self.topics) >= self.topics_max:
                self._forget_idle(max(1, self.topics_max // 10))
            if len(self.topics) >= self.topics_max:
                limit = "topics_max" if self.topics_max == TOPICS_MAX else "tenant_topics_max"
                raise LimitExceeded(limit, len(self.topics) + 1, self.topics_max, "use fewer topic names")
            policy = NOTHING_KEPT if name.startswith(INBOX) else self.policies.of_topic(name)
            record = self.topics[name] = TopicRecord(name, policy)
            record.ring.next_sequence = self._first_sequence
        return record

    def follow(self, record: TopicRecord) -> bool:
        """A topic takes over what is declared for it by now; says whether that is another policy."""
        policy = self.policies.of_topic(record.name)
        if policy == record.policy:
            return False
        if record.line is not None:
            record.line.settle()
        self.retained_bytes += record.follow(policy)
        if record.works or policy.acknowledge:
            # Jobs that wait hear of it now, not with the next message.
            self.routes(record)
        return True

    def look_again(self) -> None:
        """What subscriptions may have has changed: where messages go is found anew."""
        self._version = self._trie.version = self._trie.version + 1

    def begin(self) -> int:
        """A subscription begins; returns the moment that ends with it."""
        self.moment += 1
        return self.moment - 1

    def matching(self, topic_filter: str) -> list[TopicRecord]:
        """The topics that a filter matches."""
        if is_filter(topic_filter):
            return [record for name, record in self.topics.items() if matches(topic_filter, name)]
        record = self.topics.get(topic_filter)
        return [record] if record is not None else []

    def settle(self, topic_filter: str) -> None:
        """Who reads the topics that a filter matches is about to change: their lines end."""
        for line in list(self.lines.values()) if self.lines else ():
            if matches(topic_filter, line.topic.name):
                line.settle()

    def _forget_idle(self, topics: int) -> None:
        """Makes room by forgetting the oldest topics to which nobody publishes any more, with what they retain, and
        the inboxes of sessions that are gone."""
        idle = (
            name
            for name, record in self.topics.items()
            if name not in self._inboxes
            and name not in _NEVER_FORGOTTEN
            and not record.has_jobs
            and (not record.publishers or name.startswith(INBOX))
        )
        for name in list(islice(idle, topics)):
            self._forget(name)

    def let_go(self, bytes_max: int) -> None:
        """Makes all rings together keep no more than so much: the oldest topics let go first, declared values last."""
        for record in sorted(self.topics.values(), key=lambda record: record.policy.retain is True):
            self.retained_bytes -= record.ring.clear()
            if self.retained_bytes <= bytes_max:
                break

    def _forget(self, name: str) -> None:
        record = self.topics.pop(name, None)
        if record is not None:
            record.routes = None
            self.works.forget(record.works.values())
            self.retained_bytes -= record.ring.clear()
            self.ended.add_topic(record)
            if not name.startswith(INBOX):
                # Whoever has received a message of it and comes back shall not take a new one for an old one.
                self._first_sequence = max(self._first_sequence, record.ring.next_sequence)

    def add(self, subscription: Subscription) -> None:
        """Starts routing to a subscription."""
        self.settle(subscription.filter)
        if subscription.filter.startswith(INBOX):
            self._inboxes[subscription.filter] = subscription
        else:
            self._trie.add(check_filter(subscription.filter), subscription)
            self._version = self._trie.version

    def hold(self, topic: TopicRecord, message: Message) -> None:
        """A large message is to become a job when it is complete."""
        if message not in topic.arriving:
            message.holders += 1
            topic.arriving += (message,)

    def complete(self, topic: TopicRecord, message: Message) -> None:
        """A large message that was routed when it began has arrived: the topic keeps it, and its works have a job."""
        self.retained_bytes += topic.ring.finish(message)
        if self.retained_bytes > RETAINED_BYTES_MAX:
            self.let_go(RETAINED_BYTES_MAX * 9 // 10)
        if topic.arriving and message in topic.arriving:
            for work in topic.works.values():
                self.works.add(work, message)
            self.give_up(topic, message)

    def give_up(self, topic: TopicRecord, message: Message) -> None:
        """A large message will not be complete: it does not become a job."""
        if message in topic.arriving:
            topic.arriving = tuple(other for other in topic.arriving if other is not message)
            message.release()

    def _bury(self, topic: TopicRecord, message: Message, job: Job) -> None:
        """Publishes the message of a dead job to the topic's dead-letter topic."""
        name = topic.policy.dead_letter or f"{DEAD_LETTERS}{topic.name}"
        try:
            record = self.topic(name)
        except LimitExceeded:
            # Clients have used up all topics; that the job died is counted all the same.
            return
        if record.line is not None:
            record.line.settle()
        self.route(record, dead_letter(message, record.name, record.ring.next_sequence, job))

    def remove(self, *subscriptions: Subscription) -> None:
        """Stops routing to subscriptions that end together; what waited in a queue group goes to its other members, of
        which none may be among them."""
        for subscription in subscriptions:
            if subscription.filter.startswith(INBOX):
                self._inboxes.pop(subscription.filter, None)
                self._forget(subscription.filter)
            else:
                self._trie.remove(subscription.filter, subscription)
                self._version = self._trie.version
        for subscription in subscriptions:
            self._hand_over(subscription)

    def _hand_over(self, subscription: Subscription) -> None:
        for message in subscription.queue.drain():
            requeues = subscription.queue_group and not message.flags & Flag.TRACKED
            member = self.requeue(message, subscription.queue_group) if requeues else None
            if message.flags & Flag.REQUEST:
                self.on_moved(message, subscription, member)
            message.release()
        self.works.resign(subscription)
        self.ended.add_subscription(subscription)

    def requeue(self, message: Message, queue_group: str) -> Subscription | None:
        """Offers a message to a queue group's idlest member that may have it; returns which one, if there is any."""
        for group in self.routes(self.topic(message.topic)).queue_groups:
            if group[0].queue_group == queue_group:
                member = _least_loaded(group)
                member.offer(message)
                return member
        return None

    def routes(self, topic: TopicRecord) -> Routes:
        """Where a topic's messages go at the moment."""
        routes = topic.routes
        if routes is None or routes.version != self._version:
            routes = self._find_routes(topic)
        return routes

    def _find_routes(self, topic: TopicRecord) -> Routes:
        routes = self._match(topic)
        if routes.same(self._newest_routes):
            # Topics of the same readers share them: many topics are often found one after the other.
            routes = self._newest_routes
        topic.routes = self._newest_routes = routes
        return routes

    def _match(self, topic: TopicRecord) -> Routes:
        name = topic.name
        if name.startswith(INBOX):
            inbox = self._inboxes.get(name)
            return Routes(self._version, (inbox,) if inbox is not None else ())
        everyone: list[Subscription] = []
        grouped: list[Subscription] = []
        responds = False
        for subscription in self._trie.match(name):
            rules = subscription.rules
            if rules is not None and not rules.allows(name):
                continue
            responds = responds or subscription.responder
            (grouped if subscription.queue_group else everyone).append(subscription)
        groups = _grouped(grouped)
        works: tuple[Work, ...] = ()
        if topic.policy.acknowledge:
            # Requests are no jobs: whoever asks waits for the reply, and asks again.
            works = tuple(self.works.refresh(topic, [member for member in grouped if not member.responder]))
            groups = _grouped([member for member in grouped if member.responder])
        return Routes(self._version, tuple(everyone), tuple(map(tuple, groups.values())), works, responds=responds)

    def route(self, topic: TopicRecord, message: Message) -> None:
        """Gives a message, whose sequence is the topic's next one, to the ring and to everybody who wants it."""
        topic.published += message.count
        topic.published_bytes += message.size_bytes
        if topic.marked != self.moment:
            topic.marked = self.moment
            topic.marks.note(self.moment, message.sequence)
        self.retained_bytes += topic.ring.append(message)
        if self.retained_bytes > RETAINED_BYTES_MAX:
            self.let_go(RETAINED_BYTES_MAX * 9 // 10)
        if topic.line is not None:
            # It comes from there, where its readers read it themselves.
            topic.line.passed(message)
            message.release()
            return
        routes = topic.routes
        if routes is None or routes.version != self._version:
            routes = self._find_routes(topic)
        if message.count == 1:
            for subscription in routes.everyone:
                subscription.offer(message)
            for group in routes.queue_groups:
                _least_loaded(group).offer(message)
        else:
            _route_batch(routes, message)
        if routes.works:
            self._make_jobs(topic, routes.works, message)
        message.release()

    def _make_jobs(self, topic: TopicRecord, works: Sequence[Work], message: Message) -> None:
        if message.stream is not None and not message.stream.complete:
            self.hold(topic, message)
            return
        for single in singles(message):
            for work in works:
                self.works.add(work, single)

    def responders(self, topic: TopicRecord) -> list[Subscription]:
        """The responders to which `route` would give the next message of a topic."""
        routes = self.routes(topic)
        found = [subscription for subscription in routes.everyone if subscription.responder]
        for group in routes.queue_groups:
            subscription = _least_loaded(group)
            if subscription.responder:
                found.append(subscription)
        return found


def _grouped(members: list[Subscription]) -> dict[str, list[Subscription]]:
    groups: dict[str, list[Subscription]] = {}
    for member in members:
        groups.setdefault(member.queue_group, []).append(member)
    return groups


def _least_loaded(group: Sequence[Subscription]) -> Subscription:
    return min(group, key=lambda member: (member.queue.unread_messages, member.delivered))


def _route_batch(routes: Routes, message: Message) -> None:
    """Passes a batch on unopened to those who want all of it, and message by message to the others."""
    for subscription in routes.everyone:
        offer(subscription, message, singles)
    for group in routes.queue_groups:
        for single in singles(message):
            _least_loaded(group).offer(single)


def offer(subscription: Subscription, message: Message, split: Callable[[Message], list[Message]]) -> None:
    """Offers a batch whole where it fits, else message by message."""
    queue = subscription.queue
    whole = queue.max_lag is None and (queue.overflow is _BLOCK or queue.has_room(message))
    if message.count == 1 or whole:
        subscription.offer(message)
    else:
        for single in split(message):
            subscription.offer(single)
