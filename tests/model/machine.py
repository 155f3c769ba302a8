"""The steps of the model test: what clients may do, in any order, and what must hold after each step.

A step is a number of three bytes, from which the action and all that it needs are taken (`Choice`); several steps are
drawn at once. Drawing each value by itself would cost more than the step. Each step tells `note` what it did, so that a
falsifying example can be read.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from broker.protocol.bodies import Subscribe, Topic, decode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.state import Settings
from clients.connection.signals import Pending, Signal
from clients.publishing.streaming import StreamSource
from clients.reading.messages import Message
from clients.reading.subscription_state import SubscriptionState
from tests.model.checks import check_bounds, check_credit, check_rings
from tests.model.choices import (
    BOUNDS,
    CLIENTS,
    FILTERS,
    GROUP_FILTERS,
    LANES,
    LARGE_SIZES,
    NUMBER_BYTES,
    PATTERN,
    POLICIES,
    RING_BYTES,
    RING_MESSAGES,
    SMALL_SIZES,
    SUBSCRIPTIONS_MAX,
    TOPICS,
    WEIGHTED,
    WINDOW_BYTES,
    WINDOW_MESSAGES,
    Choice,
)
from tests.model.expected import Expected, Member
from tests.model.reference import Fate, Key, Reference, Sent
from tests.model.world import Client, World, has_gone, outbound


class Steps(RuleBasedStateMachine):
    """Clients, a broker, and the reference that watches them.

    Attributes:
        steps: how many actions have run, in all machines.
        seen: what has happened how often, in all machines: a test that looks at nothing shall not pass.
    """

    steps = 0
    seen: dict[str, int] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.reference = Reference(RING_MESSAGES, RING_BYTES, WINDOW_MESSAGES)
        self.world = World(
            self,
            Settings(
                ring_messages=RING_MESSAGES,
                ring_bytes=RING_BYTES,
                publish_window_messages=WINDOW_MESSAGES,
                publish_window_bytes=WINDOW_BYTES,
            ),
        )
        self._in_step = False
        self._names = 0
        self._published = 0
        self._topic_names: dict[tuple[str, int], str] = {}
        self._acknowledgements: list[tuple[Pending, Sent]] = []
        self._flushes: list[tuple[Pending, Client, list[Sent]]] = []
        self._streams: list[tuple[Client, StreamSource, Sent]] = []
        for _ in range(CLIENTS):
            self._new_client()

    # What reaches the broker.

    def arrives(self, client: Client, frame: Frame) -> None:
        """See Observer."""
        kind, name, reference = frame.kind, client.name, self.reference
        if kind == Kind.PUBLISH:
            topic = self._topic_names[name, frame.number]
            count = frame.count if frame.flags & Flag.BATCH else 1
            is_large = frame.flags & Flag.CHUNKED
            size = len(frame.body) + (frame.total_bytes if is_large else len(frame.payload))
            reference.arrived(
                name, topic, Lane(frame.lane).name.lower(), count, size, frame.stream if is_large else None
            )
            self._count("batches" if count > 1 else "large" if is_large else "single")
        elif kind == Kind.CHUNK and frame.flags & Flag.LAST:
            reference.complete(name, frame.stream)
        elif kind == Kind.STREAM_ABORT:
            self._count("aborted")
            reference.abort(name, frame.stream)
        elif kind == Kind.TOPIC:
            self._topic_names[name, frame.number] = topic = decode_body(frame.body, Topic).name
            reference.topic(topic)
        elif kind == Kind.CREDIT:
            expected = reference.subscriptions.get((name, frame.number))
            if expected is not None:
                expected.credited(frame.count, frame.total_bytes)
        elif kind == Kind.SUBSCRIBE:
            wishes = decode_body(frame.body, Subscribe)
            bounds = wishes.queue_messages, wishes.queue_bytes
            key = name, frame.number
            reference.subscribe(key, wishes.filter, wishes.overflow, bounds, wishes.queue_group, wishes.replay)
        elif kind == Kind.UNSUBSCRIBE:
            self._ended(client, frame.number)

    def _ended(self, client: Client, number: int) -> None:
        subscription = client.record.subscriptions[number]
        self.reference.end((client.name, number), subscription.delivered, subscription.queue.dropped)

    def _count(self, what: str, times: int = 1) -> None:
        self.seen[what] = self.seen.get(what, 0) + times

    # Publishing.

    def _new_client(self) -> Client:
        self._names += 1
        return self.world.client(f"client-{self._names}")

    def _payload(self, size: int) -> bytes:
        self._published += 1
        start = self._published % 251
        return (b"%08d" % self._published + PATTERN[start : start + size])[:size]

    def _publish(
        self, client: Client, topic: str, lane: str, size: int, *, urgent: bool = False, ack: bool = False,
        headers: dict[str, str] | None = None,
    ) -> Signal:  # fmt: skip
        message = outbound(topic, self._payload(size), lane, headers)
        message.urgent = urgent
        body_bytes = len(message.body()) if headers else 0
        payload = bytes(message.payload)  # type: ignore[arg-type]
        sent = Sent(client.name, topic, lane, payload, headers or {}, size + body_bytes)
        pending = client.acknowledged(message) if ack else None
        self.reference.called(sent)
        signal = client.publish(message)
        if isinstance(signal, StreamSource):
            self._streams.append((client, signal, sent))
        elif not has_gone(signal):
            self._count("held back")
            self.reference.forget_call(sent)
            self.world.settle()
            self._check_held_back(client, topic)
            return signal
        if pending is not None:
            self._acknowledgements.append((pending, sent))
        self.world.now_ns += 1000
        return signal

    def _check_held_back(self, client: Client, topic: str) -> None:
        """Only a `block` subscription that has not read everything holds publishers back, and only its own topics'."""
        if not (client.sends and client.reads) or any(stream.topic.name == topic for stream in client.streams()):
            return
        out = client.core.outgoing.topics[topic]
        if out.credit_messages > 0 and out.credit_bytes > 0:
            return
        assert any(blocker.unread_most or isinstance(blocker, Member) for blocker in self.reference.blockers(topic)), (
            f"{client} has to wait on {topic!r}, and nobody holds it back"
        )

    def _do_publish(self, choice: Choice) -> None:
        """One small message."""
        client, topic, lane = choice.among(self.world.clients), choice.among(TOPICS), choice.among(LANES)
        size, ack = choice.among(SMALL_SIZES), choice.one_in(4)
        urgent, headers = choice.one_in(4), {"n": str(self._published)} if choice.one_in(6) else None
        note(f"{client} publishes {size} bytes to {topic!r} {lane} {ack=} {urgent=} {headers=}")
        self._publish(client, topic, lane, size, urgent=urgent, ack=ack, headers=headers)

    def _do_burst(self, choice: Choice) -> None:
        """Small messages in close succession, which become batches; some of them stay open."""
        client, topic, count = choice.among(self.world.clients), choice.among(TOPICS), 8 + choice.upto(14)
        size = choice.among((0, 12, 30))
        note(f"{client} publishes {count} times {size} bytes to {topic!r}")
        for _ in range(count):
            if not has_gone(self._publish(client, topic, "default", size)):
                break

    def _do_publish_large(self, choice: Choice) -> None:
        """One message in chunks; the rest of it may stay behind for a while."""
        client, topic, lane = choice.among(self.world.clients), choice.among(TOPICS), choice.among(LANES)
        size, ack = choice.among(LARGE_SIZES), choice.one_in(4)
        client.sends = not choice.one_in(3)
        note(f"{client} publishes {size} bytes to {topic!r} {lane} {ack=}")
        self._publish(client, topic, lane, size, ack=ack)
        if not client.sends:
            client.send_some(choice.upto(4) * 20_000)

    def _do_give_up(self, choice: Choice) -> None:
        """The caller of a large message gives it up in the middle."""
        streams = [each for each in self._streams if not each[1].ready]
        if streams:
            client, stream, sent = choice.among(streams)
            note(f"{client} gives up {sent}")
            if stream.opening is not None and sent.fate is Fate.CALLED:
                self.reference.forget_call(sent)
            client.give_up(stream)

    def _do_flush(self, choice: Choice) -> None:
        """Asks whether all has arrived."""
        client = choice.among(self.world.clients)
        note(f"{client} flushes")
        if not client.streams():
            mine = [sent for sent in self.reference.waits_to_leave() if sent.publisher == client.name]
            self._flushes.append((client.flush(), client, mine))

    def _do_pass_time(self, choice: Choice) -> None:
        """So much that every batch leaves."""
        note("time passes")
        self.world.batches_leave()

    # Subscribing.

    def _subscriptions(self) -> list[tuple[Client, SubscriptionState]]:
        return [(client, each) for client in self.world.clients for each in client.subscriptions.values()]

    def _do_subscribe(self, choice: Choice) -> None:
        """A new subscription."""
        if len(self._subscriptions()) < SUBSCRIPTIONS_MAX:
            client, policy, bounds = choice.among(self.world.clients), choice.among(POLICIES), choice.among(BOUNDS)
            wishes = Subscribe(choice.among(FILTERS), policy, 1 if policy == "latest" else bounds[0], bounds[1])
            if choice.one_in(4):
                wishes.queue_group = choice.among(tuple(GROUP_FILTERS))
                wishes.filter = GROUP_FILTERS[wishes.queue_group]
                wishes.overflow = "block" if policy == "latest" else policy
            else:
                wishes.replay = choice.among((None, None, "latest", "all", 1, 5, 20))
            note(f"{client} subscribes {wishes}")
            self._count(policy)
            client.subscribe(wishes)

    def _do_unsubscribe(self, choice: Choice) -> None:
        """The end of a subscription."""
        subscriptions = self._subscriptions()
        if subscriptions and len(subscriptions) > choice.upto(SUBSCRIPTIONS_MAX):
            client, subscription = choice.among(subscriptions)
            note(f"{client} unsubscribes {subscription.number}")
            client.unsubscribe(subscription.number)

    def _do_take(self, choice: Choice) -> None:
        """The application takes some messages."""
        subscriptions = self._subscriptions()
        if subscriptions:
            client, subscription = choice.among(subscriptions)
            most = choice.among((1, 1, 2, 4, 1000))
            note(f"{client} takes {most} of {subscription.number}")
            self._take(client, subscription, most)

    def _take(self, client: Client, subscription: SubscriptionState, most: int) -> list[Sent]:
        """Takes what is here; of `latest` subscriptions asks when nothing is."""
        expected = self.reference.subscriptions[client.name, subscription.number]
        taken: list[Sent] = []
        while len(taken) < most:
            message = client.take(subscription)
            if message is None:
                if not subscription.is_latest or not self._ask(client, subscription):
                    break
                continue
            sent = self._sent(message)
            expected.got(message, sent)
            taken.append(sent)
        self._count("taken", len(taken))
        return taken

    def _ask(self, client: Client, subscription: SubscriptionState) -> bool:
        """Asks a `latest` subscription for its next message; says whether it came."""
        if client.ask(subscription):
            client.send_some()
        self.world.settle()
        return subscription.pending > 0

    def _sent(self, message: Message) -> Sent:
        sent = self.reference.topic(message.topic).messages.get(message.sequence)
        assert sent is not None, f"{message!r} was never published"
        return sent

    # Links and lives.

    def _do_stop_or_go(self, choice: Choice) -> None:
        """A link is full, or takes everything again."""
        client = choice.among(self.world.clients)
        if choice.one_in(3):
            client.sends = not client.sends
        else:
            client.reads = not client.reads
        note(f"link of {client}")

    def _do_move_some(self, choice: Choice) -> None:
        """A full link takes a few bytes."""
        client, most = choice.among(self.world.clients), choice.among((1, 60, 500, 20_000, 40_000, 100_000))
        note(f"{most} bytes each way for {client}")
        client.send_some(most)
        client.receive_some(most)

    def _do_die(self, choice: Choice) -> None:
        """A client is killed, and another one comes."""
        client = choice.among(self.world.clients)
        if choice.one_in(3):
            note(f"{client} is killed")
            self._kill(client)
            self._new_client()

    def _kill(self, client: Client) -> None:
        for number in list(client.record.subscriptions):
            if number:
                self._ended(client, number)
        self.reference.gone(client.name)
        self.world.kill(client)
        self._streams = [each for each in self._streams if each[0] is not client]
        self._flushes = [each for each in self._flushes if each[1] is not client]
        self._acknowledgements = [each for each in self._acknowledgements if each[1].publisher != client.name]

    @rule(numbers=st.binary(min_size=4 * NUMBER_BYTES, max_size=8 * NUMBER_BYTES))
    def act(self, numbers: bytes) -> None:
        """A few steps."""
        for start in range(0, len(numbers) - NUMBER_BYTES + 1, NUMBER_BYTES):
            self.step(int.from_bytes(numbers[start : start + NUMBER_BYTES], "little"))

    def step(self, number: int) -> None:
        """One action, what follows from it at once, and what must hold then."""
        self._in_step = True
        choice = Choice(number)
        ACTIONS[choice.among(WEIGHTED)](self, choice)
        type(self).steps += 1
        self.world.settle()
        self.holds()
        self._in_step = False

    # What must hold.

    def holds(self) -> None:
        """After each step."""
        world, reference = self.world, self.reference
        world.check_open()
        self._streams = [each for each in self._streams if not each[1].ready]
        for pending, sent in self._acknowledgements:
            if pending.ready:
                assert pending.result() == sent.sequence, f"{sent} was acknowledged as {pending.sequence}"
                assert sent.fate is Fate.COMPLETE
        self._acknowledgements = [each for each in self._acknowledgements if not each[0].ready and not each[1].aborted]
        for flush, client, sent_before in self._flushes:
            if flush.ready:
                assert all(sent.fate is not Fate.CALLED for sent in sent_before), f"{client} was told of {sent_before}"
        self._flushes = [each for each in self._flushes if not each[0].ready]
        check_rings(world, reference)
        check_bounds(world, reference)

    # When everybody has read everything.

    def _do_calm(self, choice: Choice) -> None:
        """All links are free and everybody reads: nothing may be missing."""
        if choice.one_in(3):
            note("everybody reads everything")
            self._calm()

    def _calm(self) -> None:
        world, reference = self.world, self.reference
        for client in world.clients:
            client.sends = True
        world.batches_leave()
        world.settle()
        assert not reference.waits_to_leave(), f"{reference.waits_to_leave()} never left"
        for client in world.clients:
            client.reads = True
        unread = {key: each.newest_unread() for key, each in reference.subscriptions.items() if type(each) is Expected}
        world.settle()
        received: dict[Key, list[Sent]] = {}
        progress = True
        while progress:
            progress = False
            for client, subscription in self._subscriptions():
                taken = self._take(client, subscription, 1000)
                received.setdefault((client.name, subscription.number), []).extend(taken)
                progress |= bool(taken)
            world.settle()
        assert not reference.open_messages(), f"{reference.open_messages()} never arrive"
        self._check_settled(received, unread)
        check_credit(world, reference)
        self._count("calms")

    def _check_settled(self, received: dict[Key, list[Sent]], unread: dict[Key, list[Sent]]) -> None:
        told: dict[str, int] = {}
        for client, subscription in self._subscriptions():
            key = client.name, subscription.number
            expected = self.reference.subscriptions[key]
            self._count("dropped", subscription.dropped)
            if isinstance(expected, Member):
                told[expected.group.name] = told.get(expected.group.name, 0) + subscription.dropped
            else:
                expected.check_settled(subscription.dropped, received.get(key, []), unread[key])
        for group in self.reference.groups.values():
            group.check_settled(told[group.name])

    def teardown(self) -> None:
        """Everybody reads everything, and goes: nothing is left but what the rings keep."""
        if self._in_step:
            # It has failed, and what would fail here as well says nothing.
            return
        self._calm()
        for client in list(self.world.clients):
            self._kill(client)
        state = self.world.state
        kept = sum(log.kept_bytes for log in self.reference.topics.values())
        own = sum(topic.ring.held_bytes for topic in state.router.topics.values() if topic.name.startswith("$"))
        assert state.router.retained_bytes == kept + own, f"{state.router.retained_bytes} retained, {kept + own} kept"
        for topic in state.router.topics.values():
            assert not topic.publishers
            assert not topic.held_back
            topic.ring.clear()
        assert not state.sessions
        assert not state.held_bytes(), f"{state.held_bytes()} bytes are held for nobody"


ACTIONS: dict[str, Callable[[Steps, Choice], None]] = {
    name.removeprefix("_do_"): action for name, action in vars(Steps).items() if name.startswith("_do_")
}
