"""A broker and its clients in one thread without sockets; each link lets through what a test allows.

A client here is all of the real one but its socket: the Core that the synchronous and the asynchronous client share,
and a Session. Nothing moves but in `World.settle` and in the calls that move so many bytes, and time stands still
unless it is moved. An `Observer` sees each frame in the moment in which it reaches the broker.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from typing import Protocol

from broker.errors import ConnectionClosed
from broker.limits import BATCH_WINDOW_NS
from broker.protocol.bodies import Hello, Subscribe, Welcome
from broker.protocol.codes import Code
from broker.protocol.frames import Content, Flag, Frame, Kind, Lane
from broker.protocol.receiver import Received
from broker.protocol.session import Phase, Session
from broker.state import Settings
from clients.connection.core import Core, Outbound, try_publish
from clients.connection.signals import Pending, Signal
from clients.publishing.outgoing import BATCH_OPENED, BATCHED, SENT
from clients.publishing.outgoing_topic import LANES
from clients.publishing.streaming import StreamSource
from clients.reading.messages import Answer, Delivery, Message
from clients.reading.subscription_state import SubscriptionState
from tests.state.harness import CountingState, transfer

UNBOUNDED = 1 << 62
WALL_NS = 1_700_000_000_000_000_000


class Observer(Protocol):
    """Who sees what reaches the broker."""

    def arrives(self, client: Client, frame: Frame) -> None:
        """A frame is about to be given to the broker."""
        ...


def _no_reply(message: Message, answer: Answer) -> Awaitable[None]:
    raise AssertionError("nobody asks here")


def _no_settling(delivery: Delivery, *, refused: bool, delay_s: float) -> Awaitable[None]:
    raise AssertionError("there are no jobs here")


class Client:
    """A client without a socket.

    Attributes:
        sends: whether its link to the broker takes everything.
        reads: whether its link from the broker takes everything.
        subscriptions: those that have been acknowledged and not closed, by number.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.sends = self.reads = True
        self.core = Core(name, _no_reply, _no_settling)
        self.subscriptions: dict[int, SubscriptionState] = {}
        self.connect()

    def connect(self) -> None:
        """Opens a session with the broker."""
        world = self.world
        self.record = world.state.connect(f"test:{self.name}", world.now_ns)
        self.session = Session(
            hello=Hello(self.name),
            now_ns=world.now_ns,
            allocate=self.core.allocate,
            heartbeat_interval_s=5.0,
            heartbeat_timeout_s=30.0,
        )
        self.send_some()
        self.receive_some()
        assert self.core.session is self.session, f"{self.record.session} has not welcomed {self.session}"

    # Links.

    @property
    def owes(self) -> bool:
        """Whether something waits to be sent to the broker."""
        return self.session.has_unsent()

    @property
    def is_owed(self) -> bool:
        """Whether something waits to be sent by the broker."""
        return self.record.session.has_unsent()

    def send_some(self, most_bytes: int = UNBOUNDED) -> int:
        """Moves bytes to the broker."""
        moved = transfer(self.session, self.record.session, self._arrives, self.world.now_ns, most_bytes)
        if not self.session.has_unsent():
            self.core.outgoing.link_drained()
        return moved

    def receive_some(self, most_bytes: int = UNBOUNDED) -> int:
        """Moves bytes from the broker."""
        return transfer(self.record.session, self.session, self._receive, self.world.now_ns, most_bytes)

    def _arrives(self, received: Received, now_ns: int) -> None:
        if isinstance(received, Frame):
            self.world.observer.arrives(self, received)
        self.world.state.receive(self.record, received, now_ns)

    def _receive(self, received: Received, now_ns: int) -> None:
        if isinstance(received, Welcome):
            self.core.connected(self.session, received)
        else:
            self.core.receive(received, now_ns)

    # Calls.

    def publish(self, message: Outbound) -> Signal:
        """As `Client.publish`: by the short way if there is one; a Signal that says what the caller would wait for."""
        now_ns, wall_ns, data = self.world.now_ns, WALL_NS, message.payload
        plain = message.headers is None and not message.flags and isinstance(data, bytes) and len(data) < 16_384
        if plain:
            outgoing = self.core.outgoing
            done = outgoing.publish_plain(
                message.topic, message.lane, message.content, data, now_ns, wall_ns, urgent=message.urgent
            )
            if done is not None:
                return done
        return try_publish(self.core, message, now_ns, wall_ns)

    def acknowledged(self, message: Outbound) -> Pending:
        """Makes a message ask for its acknowledgement, which is what is returned."""
        pending = Pending(f"a message on {message.topic!r}")
        message.flags |= Flag.ACKNOWLEDGE
        message.reference = self.core.pending(pending)
        return pending

    def flush(self) -> Pending:
        """Asks the broker whether it has everything."""
        outgoing = self.core.outgoing
        outgoing.send_batches()
        pending = Pending("a flush")
        self.core.send(Frame(Kind.FLUSH, lane=Lane.BULK, target=self.core.pending(pending)))
        return pending

    def subscribe(self, wishes: Subscribe) -> SubscriptionState:
        """Subscribes; the answer has come when this returns, whatever the links' state."""
        subscription, pending = self.core.subscribe(wishes)
        while not pending.ready:
            assert self.send_some() + self.receive_some(), f"{wishes} is never answered"
        pending.result()
        self.subscriptions[subscription.number] = subscription
        return subscription

    def unsubscribe(self, number: int) -> None:
        """Ends a subscription; the end has reached the broker when this returns."""
        self.core.unsubscribe(self.subscriptions.pop(number))
        self.send_some()

    def take(self, subscription: SubscriptionState) -> Message | None:
        """As `operations.take`: the next message if it is here; gives credit."""
        message = subscription.take()
        if message is not None and not subscription.is_latest and subscription.credit_due:
            self.core.incoming.give_credit(subscription)
        return message

    def ask(self, subscription: SubscriptionState) -> bool:
        """Asks for the next message of a `latest` subscription that has none; says whether it had not asked yet."""
        frame = subscription.ask()
        if frame is not None:
            self.core.send(frame)
        return frame is not None

    def give_up(self, stream: StreamSource) -> None:
        """The caller of a large message does not wait any longer."""
        self.core.outgoing.streams.give_up(self.core.session, stream, "the publisher gave it up")

    def streams(self) -> list[StreamSource]:
        """Large messages that have not left."""
        return [topic.stream for topic in self.core.outgoing.topics.values() if topic.stream is not None]

    def __repr__(self) -> str:
        return f"<{self.name} sends={self.sends} reads={self.reads}>"


class World:
    """The broker and its clients.

    Attributes:
        observer: sees what reaches the broker.
        now_ns: the time.
    """

    def __init__(self, observer: Observer, settings: Settings) -> None:
        self.observer = observer
        self.now_ns = 1_000_000_000
        self.state = CountingState(replace(settings))
        self.clients: list[Client] = []

    def client(self, name: str) -> Client:
        """A new client, connected."""
        client = Client(self, name)
        self.clients.append(client)
        return client

    def kill(self, client: Client) -> None:
        """A client's process is killed: the broker sees the end of the connection."""
        self.clients.remove(client)
        self.state.disconnect(client.record.id, self.now_ns)
        client.session.lost(ConnectionClosed("killed", Code.NORMAL))

    def settle(self) -> None:
        """Moves bytes over all links that take any until nothing moves."""
        clients, moved = self.clients, True
        while moved:
            moved = False
            for client in clients:
                if client.sends and client.session.has_unsent():
                    moved |= client.send_some() > 0
            self.state.take_ready()
            for client in clients:
                if client.reads and client.record.session.has_unsent():
                    moved |= client.receive_some() > 0

    def batches_leave(self) -> None:
        """Lets so much time pass that every batch has left."""
        self.now_ns += 2 * BATCH_WINDOW_NS
        for client in self.clients:
            client.core.tick(self.now_ns)

    def check_open(self) -> None:
        """No session has failed."""
        for client in self.clients:
            for session in (client.session, client.record.session):
                assert session.phase is Phase.OPEN, f"{client}: {session}"


def outbound(topic: str, payload: bytes, lane: str, headers: dict[str, str] | None) -> Outbound:
    """A message of bytes."""
    return Outbound(topic, LANES[lane], Content.BYTES, None, payload, headers)


def has_gone(signal: Signal) -> bool:
    """Whether a small message has been handed over."""
    return signal is SENT or signal is BATCHED or signal is BATCH_OPENED
