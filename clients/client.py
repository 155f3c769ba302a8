"""The synchronous client, for training scripts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NoReturn, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from broker.devices import Device, read_device
from broker.limits import ANSWER_TIMEOUT_S, COLLECTIVE_TIMEOUT_S, QUEUE_BYTES, QUEUE_MESSAGES
from broker.protocol.bodies import Declare, Subscribe
from broker.protocol.frames import Content
from broker.protocol.pressure import Pressure
from broker.protocol.values import Encoded, encode_value
from clients.asking import direct, requesting
from clients.asking.exchanges import Request
from clients.asking.replies import Replies
from clients.asking.responding import Callbacks, Responder
from clients.collectives import joining
from clients.collectives.compression import Compression
from clients.connection import operations
from clients.connection.checks import check_callable, stays_here
from clients.connection.core import Core
from clients.connection.dialling import Dialling
from clients.connection.driver import Driver
from clients.connection.options import (
    PUBLISH_TIMEOUT_S,
    declaration,
    group_place,
    outbound,
    request_message,
    subscribe_wishes,
)
from clients.connection.pressure import pressure as ask_pressure
from clients.connection.pump import seconds
from clients.groups import Group
from clients.publishing.alike import publish_alike
from clients.publishing.device_out import AS_BYTES, prepare, publish_placed
from clients.publishing.direct import publish as publish_directly
from clients.publishing.direct import publish_large
from clients.publishing.outgoing_topic import LANES
from clients.publishing.sharing import empty_shared, publish_shared
from clients.reading.handlers import Handler, Handlers
from clients.reading.messages import Answer, Delivery, Message, Sent
from clients.subscriptions import Subscription

_ARRAY: Final = np.ndarray
_SENT, _BYTES = Sent(), int(Content.BYTES)


class Client:
    """A connection to a broker. Any thread may call anything; a call that waits holds up no other thread's call.

    A child process after fork makes its own client; its parent's is closed in it. Signal handlers and `__del__` must
    not call a client, because they can interrupt a call that holds its lock: set a flag there.
    """

    _groups: type[Group] = Group

    def __init__(self, dialling: Dialling) -> None:
        """Made by `connect`."""

        # They know the driver and not the client, which would never be gone otherwise.
        def reply(request: Message, answer: Answer) -> Awaitable[None]:
            direct.reply(driver, request, answer)
            return _SENT

        def settle(delivery: Delivery, *, refused: bool, delay_s: float) -> Awaitable[None]:
            with driver.lock:
                operations.settle(driver, delivery, refused=refused, delay_s=delay_s)
            return _SENT

        self._core = Core(dialling.greeting.name, reply, settle)
        self._driver = driver = Driver(self._core, dialling)
        self._handlers = Handlers(driver)
        self._callbacks = Callbacks()
        self._hold = driver.holding.hold()

    @property
    def name(self) -> str:
        """What this client calls itself."""
        return self._core.name

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._core.session is not None

    def publish(
        self,
        topic: str,
        value: object,
        *,
        headers: Mapping[str, str] | None = None,
        lane: str | None = None,
        ack: str | None = None,
        urgent: bool = False,
        priority: int = 0,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> int | None:
        """Publishes a value. When this returns, the value may be changed.

        Args:
            topic: slash-separated levels, no wildcards.
            value: None, bool, int, float, str, bytes, list, dict; or an array: numpy, torch, cupy, anything with DLPack
                or the buffer protocol; or lists and dicts with arrays in them, as a model's state dict. Arrays are sent
                from their own memory.
            headers: short texts that travel with it.
            lane: `control` passes everything, `bulk` lets everything pass; None takes what is declared for the topic,
                else `default`.
            ack: "accepted" waits until the broker has the message, and returns its sequence.
            urgent: never waits for a batch.
            priority: as a job of a queue group on a topic with acknowledgement, 0 to 9; the highest goes first.
            timeout_s: how long to wait for room when a subscriber with overflow="block" does not keep up, in seconds.

        Raises:
            InvalidValue: a topic, value or option that cannot be used; nothing was sent.
            LimitExceeded: the value is longer than what is declared for the topic, or an earlier one was and the broker
                has refused it.
            TimeoutError: no room in time. A message of 16 KiB or more, or one with ack, may have arrived all the same.
            ConnectionClosed: the client is closed, or the connection ended before the message had left.
        """
        if timeout_s is not PUBLISH_TIMEOUT_S and timeout_s is not None:
            # Most messages wait for nothing, and would never find out.
            seconds(timeout_s)
        if self._core.devices is not None:
            prepared = prepare(self._core, topic, value, headers, lane, ack, priority, timeout_s)
            placed = AS_BYTES if prepared is None else publish_placed(self._driver, prepared)
            if placed != AS_BYTES:
                return None if ack is None else placed
        encoded: Encoded | None = None
        if headers is None and ack is None and not priority:
            if type(value) is _ARRAY and publish_alike(self._driver, topic, lane, value):
                return None
            if type(value) is bytes:
                if publish_directly(self._driver, topic, lane, _BYTES, value, urgent):
                    return None
                encoded = _BYTES, None, value
            elif lane is None or (type(lane) is str and lane in LANES):
                encoded = encode_value(value)
                content, tensor, payload = encoded
                if (
                    tensor is None
                    and type(payload) is bytes
                    and publish_directly(self._driver, topic, lane, content, payload, urgent)
                ):
                    return None
            if encoded is not None and publish_large(self._driver, topic, lane, encoded, timeout_s):
                return None
        message, acknowledge = outbound(
            topic, value, headers, lane, ack, urgent=urgent, priority=priority, encoded=encoded
        )
        if self._core.arenas.suits(len(message.payload)):
            return publish_shared(self._driver, message, timeout_s, acknowledge=acknowledge)
        return self._driver.run(operations.publish(self._driver, message, timeout_s, acknowledge=acknowledge))

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike = "float32") -> npt.NDArray[np.generic]:
        """An uninitialised array to be filled and published: on the broker's host, without any copy.

        It lies in memory that this client shares with its readers, if it has 32 KiB or more and there is such memory.
        To publish it gives it away: it becomes read-only, and may be published again. What is still written to it, by
        way of an earlier view, its readers see. To publish another view of it, before that and while there is the array
        itself, copies and changes nothing.

        Args:
            shape: lengths of the axes.
            dtype: a numpy dtype.
        """
        return empty_shared(self._driver, shape, dtype)

    def flush(self, timeout_s: float | None = ANSWER_TIMEOUT_S) -> None:
        """Waits until everything that was published so far has reached the broker.

        Raises:
            LimitExceeded: everything has, but the broker has refused a message that was longer than its topic allows.
            TimeoutError: not in time; it may still arrive.
            ConnectionClosed: the connection ended; what was published shortly before may be lost.
        """
        self._driver.run(operations.flush(self._driver, timeout_s))

    def pressure(self, topic: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Pressure:
        """Asks the broker how a topic fares: who is too slow for it, and whether its publishers wait.

        The same is announced on `$sys/pressure` as it happens, without asking.

        Args:
            topic: a topic, no filter; of one to which nobody has published yet, who would get its messages.
            timeout_s: how long the broker may take to answer, in seconds.

        Raises:
            InvalidValue: it is no topic.
            PermissionDenied: it is another client's inbox.
            TimeoutError: no answer in time.
            ConnectionClosed: the connection ended.
        """
        return self._driver.run(ask_pressure(self._driver, topic, timeout_s))

    def declare(
        self,
        topic_filter: str,
        *,
        ring_messages: int | None = None,
        ring_bytes: int | None = None,
        retain: bool | None = None,
        overflow: str | None = None,
        batch_bytes: int | None = None,
        batch_window_us: int | None = None,
        lane: str | None = None,
        max_message_bytes: int | None = None,
        acknowledge: bool | None = None,
        lease_s: float | None = None,
        max_deliveries: int | None = None,
        dead_letter: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """Declares what holds for the topics that a filter matches; when this returns, it does, for topics in use too.

        Each setting of a topic is decided by the most specific filter that sets it, level by level from the left: a
        name before `+`, and `+` before `#`. Declaring a filter again replaces all that was declared for it, by anybody;
        without any setting it is cleared. It holds as long as the broker lives, and this client declares it again when
        it has reconnected.

        Args:
            topic_filter: which topics; None in what follows leaves a setting to less specific filters and defaults.
            ring_messages: messages that a topic keeps for replay.
            ring_bytes: bytes that a topic keeps for replay.
            retain: True keeps the newest message however long it is, False keeps nothing.
            overflow: of subscriptions to filters within this one that name none; see subscribe.
            batch_bytes: a publisher's batch leaves when it holds so much; 0 never batches.
            batch_window_us: a publisher's batch leaves when its first message is so old, in microseconds.
            lane: of messages that name none, or `default`; see publish.
            max_message_bytes: longer values are refused, with LimitExceeded at the publisher.
            acknowledge: whether members of a queue group acknowledge each message.
            lease_s: how long a member may take for a message, in seconds, before another one gets it.
            max_deliveries: deliveries of a message before it goes to the dead-letter topic; 0 sets no bound.
            dead_letter: that topic; empty for `$dead/` and the topic's name.
            timeout_s: how long the broker may take to agree, in seconds.

        Raises:
            InvalidValue: a filter or a setting that cannot be used.
            PermissionDenied: the broker's configuration has fixed the filter.
            LimitExceeded: there are too many declarations.
            TimeoutError: no answer in time; it may hold all the same.
        """
        wishes = Declare(
            topic_filter, ring_messages, ring_bytes, retain, overflow, batch_bytes, batch_window_us, lane,
            max_message_bytes, acknowledge, lease_s, max_deliveries, dead_letter,
        )  # fmt: skip
        self._driver.run(operations.declare(self._driver, declaration(wishes), timeout_s))

    def subscribe(
        self,
        topic_filter: str,
        *,
        overflow: str | None = None,
        queue_messages: int = QUEUE_MESSAGES,
        queue_bytes: int = QUEUE_BYTES,
        queue_group: str | None = None,
        replay: str | int | None = None,
        max_lag: int | None = None,
        device: str | None = None,
        handler: Handler | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Subscription:
        """Subscribes; when this returns, the broker has acknowledged.

        Args:
            topic_filter: a topic, or one with `+` for one level and `#` for all the rest.
            overflow: when queue_messages are unread: `block` holds publishers of these topics back, `drop_oldest` and
                `drop_newest` drop and count, `latest` keeps the newest only. None takes what is declared for the whole
                filter, else `block`.
            queue_messages: the bound, in messages.
            queue_bytes: the bound, in bytes; one longer message may always be under way.
            queue_group: each message goes to one of the group's subscriptions, to the least loaded. On a topic declared
                with acknowledge=True it is to be settled (`ack`, `nack`), and a member has at most queue_messages that
                it has not settled; a new group begins with what the topic retains, or with what replay asks for.
            replay: `latest` starts with each topic's last value, `all` with everything that is retained, a number with
                the retained messages from that sequence on. After a lost connection the subscription goes on behind
                what it has received, whatever this says.
            max_lag: never hands over a message that is more than so many sequences behind the newest of its topic that
                has come when it is taken; with 0, it is the newest or nothing. What is too old is dropped as with
                `drop_oldest`, which it implies, and counts in `message.gap`.
            device: arrays are copied there when a message's value is read: `cuda:0`, or `cuda` for the current one.
            handler: called with each message on the client's own thread; then the subscription is not to be read. A
                job is acknowledged when the handler returns, unless it has settled it or returns clients.DEFERRED, and
                refused when it raises.
            timeout_s: how long the broker may take to acknowledge, in seconds.

        Raises:
            InvalidValue: a filter or an option that cannot be used; a device that is not here, or cupy is missing.
            LimitExceeded: too many subscriptions.
            TimeoutError: no acknowledgement in time.
        """
        if handler is not None:
            check_callable("handler", handler)
        wishes = subscribe_wishes(
            topic_filter, overflow, queue_messages, queue_bytes, queue_group, replay, max_lag=max_lag
        )
        return self._subscribe(wishes, handler, timeout_s, read_device(device))

    def _subscribe(
        self, wishes: Subscribe, handler: Handler | None, timeout_s: float, device: Device | None
    ) -> Subscription:
        state = self._driver.run(operations.subscribe(self._driver, wishes, timeout_s, device))
        if handler is not None:
            self._handlers.add(state, handler)
        return Subscription(self._driver, state, read=handler is None)

    def respond(
        self,
        topic_filter: str,
        function: Callable[[Request], object],
        *,
        queue_group: str | None = None,
        device: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Subscription:
        """Answers requests.

        Args:
            topic_filter: where requests come.
            function: called with each request, on the client's own thread; what it returns is the reply, what it raises
                reaches the requester as RequestFailed. When it returns clients.DEFERRED there is no reply yet: call the
                request's `reply` later, from any thread. When it is a generator, each value is a reply (see
                request_many); it runs in turn with other handlers, while the requester takes its replies.
                `request.cancelled` tells that the requester has given up; a generator is then closed. A request that is
                repeated within 60 s, and among the last 4,096, runs the function no second time: it gets the replies
                that it got, or will get, if they are not longer than 64 KiB together.
            queue_group: each request goes to one of the group's responders.
            device: where arrays of requests are to be; see subscribe.
            timeout_s: how long the broker may take to acknowledge, in seconds.

        Returns:
            The subscription; closing it ends the responding.
        """
        check_callable("function", function)
        place = read_device(device)
        wishes = subscribe_wishes(topic_filter, "block", QUEUE_MESSAGES, QUEUE_BYTES, queue_group, None, responder=True)
        with self._driver.lock:
            exchanges = self._core.responders.add(self._callbacks)
        return self._subscribe(wishes, Responder(self._handlers, exchanges, function), timeout_s, place)

    def request(
        self,
        topic: str,
        value: object = None,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        retries: int = 0,
        headers: Mapping[str, str] | None = None,
        lane: str = "default",
        device: str | None = None,
    ) -> Message:
        """Asks and waits for the first reply.

        Args:
            topic: where responders are.
            value: as for publish.
            timeout_s: how long each try waits, in seconds.
            retries: further tries after the first, when no reply came in time, the connection was lost, or all that
                were asked are gone; a later try also waits for a responder to come back. A responder that knows the
                request runs its function no second time: see `respond`.
            headers: short texts that travel with it.
            lane: see publish; the reply takes the same.
            device: where arrays of the reply are to be; see subscribe.

        Raises:
            NoResponders: nobody responds at the topic; at once, in the first try.
            RequestFailed: the responder's function raised.
            ResponderLost: nobody is left of those that were asked, in the last try.
            TimeoutError: no reply came in any of the tries; the responder is told to stop.
        """
        place = None if device is None else read_device(device)
        if not self._handlers.run_this_thread:
            reply = direct.request(self._driver, topic, value, timeout_s, retries, headers, lane)
        else:
            with self._handlers.aside():
                reply = direct.request(self._driver, topic, value, timeout_s, retries, headers, lane)
        reply._device = place
        return reply

    def request_many(
        self,
        topic: str,
        value: object = None,
        *,
        timeout_s: float | None = 1.0,
        stall_s: float | None = None,
        max_replies: int | None = None,
        headers: Mapping[str, str] | None = None,
        lane: str = "default",
    ) -> Replies:
        """Asks all responders and yields their replies as they come, until each has said its last one.

        Args:
            topic: where responders are.
            value: as for publish.
            timeout_s: how long to wait for replies in all, in seconds; then the iteration ends. None waits as long as
                the responders live.
            stall_s: ends the iteration earlier, when no reply has come for so many seconds.
            max_replies: ends the iteration earlier; None takes all that come in time.
            headers: short texts that travel with it.
            lane: see publish; the replies take the same.

        Returns:
            An iterator, which makes the request when it is first asked; its `complete` says afterwards whether all
            responders were done. Leaving it early tells the responders to stop.

        Raises:
            NoResponders: nobody responds at the topic. Raised, as all of these, by the iterator.
            RequestFailed: one of the responders' functions raised; after the replies of the others.
            ResponderLost: one of the responders was gone before its last reply; after the replies of the others.
            ConnectionClosed: the connection ended.
        """
        message = request_message(topic, value, headers, lane, 0)
        gathering = requesting.Gathering(self._driver, message, timeout_s, stall_s, max_replies)
        return Replies(self._driver, gathering, self._handlers.aside)

    def group(
        self,
        name: str,
        *,
        world_size: int | None = None,
        rank: int | None = None,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        schedule: str = "auto",
        compression: str = "none",
    ) -> Group:
        """Becomes a member of a collective group; returns when it has formed. Newcomers get in between two operations.

        Args:
            name: the group's name, as of a topic; the same on all ranks.
            world_size: how many ranks the group is made for; default: $WORLD_SIZE.
            rank: this member's rank; default: $RANK, and without it the broker gives the lowest free one.
            timeout_s: how long to wait for the others, in seconds.
            schedule: "shm", "star", "ring", "halving" or "hierarchical", as docs/api.md says; or "auto", the quickest.
            compression: of all_reduce, if the call does not name another one; see Group.all_reduce.

        Raises:
            InvalidValue: a name that no topic may have, no world_size, a rank outside of it, no such schedule or
                compression.
            CollectiveError: the rank is taken, the group is full or was made for another world_size; no such way.
            RankTimeoutError: the group did not form in time; missing_ranks says who was not there.
        """
        size, wanted = group_place(name, world_size, rank)
        compressed = Compression(compression)
        place = self._driver.run(joining.join(self._driver, name, size, wanted, timeout_s, schedule))
        return self._groups(self._driver, place, compressed)

    def close(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Closes in order: what was published still leaves. Calls that wait raise ConnectionClosed.

        Args:
            timeout_s: how long to wait for the link to take what is queued, in seconds.
        """
        self._handlers.stop()
        self._driver.close("the client was closed", timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise stays_here(self, "Connect in the other process, with the same address")

    def __repr__(self) -> str:
        state = "connected" if self.connected else "closed" if self._core.closed else "reconnecting"
        return f"<Client {self.name!r} {state}>"
