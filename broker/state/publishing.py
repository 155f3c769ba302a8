"""What arrives from publishers: topics, messages, chunks; and the credit that they get for more."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from broker.errors import InvalidValue, LimitExceeded, PermissionDenied, ProtocolError
from broker.limits import (
    BATCH_MESSAGES_MAX,
    FRAME_PAYLOAD_BYTES_MAX,
    PLACED_BYTES_MIN,
    PRIORITY_MAX,
    STREAMS_PER_SESSION_MAX,
    TOPICS_PER_SESSION_MAX,
)
from broker.protocol.batches import ENTRY_BYTES, join_batch, split_batch
from broker.protocol.bodies import Failure, Topic, decode_body, encode_body
from broker.protocol.codes import Code, failure_of
from broker.protocol.frames import Flag, Frame, Kind, Lane, payload_bytes
from broker.protocol.places import charge
from broker.security.roles import Verb
from broker.state.authority import Authority
from broker.state.delivery import Subscription
from broker.state.device_places import stays
from broker.state.flow import Flow
from broker.state.pressure import Pressure
from broker.state.publish_policies import for_publishers
from broker.state.records import SessionRecord
from broker.state.requests import Requests
from broker.state.room import Room, may
from broker.state.sharing import borrowed
from broker.state.topics import NOTHING_KEPT, Publisher, Router, TopicRecord
from broker.state.works import Work
from broker.topics.messages import Message, Stream
from broker.topics.names import check_topic

log = logging.getLogger(__name__)

_BATCH, _CHUNKED, _REQUEST, _ACKNOWLEDGE, _LAST, _SHARED, _TRACED = (
    int(flag)
    for flag in (Flag.BATCH, Flag.CHUNKED, Flag.REQUEST, Flag.ACKNOWLEDGE, Flag.LAST, Flag.SHARED, Flag.TRACED)
)

_CONTROL, _DEFAULT = int(Lane.CONTROL), int(Lane.DEFAULT)
_PLACED_BYTES_MIN = PLACED_BYTES_MIN
_ONE_BY_ONE = _REQUEST | _LAST
"""A message, a request or a last reply, that came alone."""
_LANES: Final = {lane.name.lower(): int(lane) for lane in Lane}


class Publishing:
    """The publishing half of the broker's state."""

    def __init__(
        self,
        router: Router,
        requests: Requests,
        pressure: Pressure,
        window_messages: int,
        window_bytes: int,
        flush: Callable[[SessionRecord], None],
        authority: Authority,
        flow: Flow,
    ) -> None:
        self.router = router
        self._room = Room(router)
        self.authority = authority
        self.flow = flow
        self.shared_bytes = 0
        self.requests = requests
        self.pressure = pressure
        self.window_messages = window_messages
        self.window_bytes = window_bytes
        self.pushing_back = False
        """Nobody gets more credit, because memory runs short (broker/state/watermark.py)."""
        self.places = False
        """Messages may lie in the memory of devices."""
        self.refusal: LimitExceeded | None = None
        """Why no message is taken, if memory has run so short."""
        self._half_messages = window_messages - window_messages // 2
        self._half_bytes = window_bytes - window_bytes // 2
        self.flush = flush
        self.consider_line: Callable[[Publisher, Stream | None], None] = lambda publisher, stream: None
        """Called when a publisher has sent so many messages one by one that a line may pay, with the last one's stream
        if that lies in shared memory."""
        self.traced: Callable[[TopicRecord, Message], None] | None = None
        """Routes a traced message, if somebody follows such."""

    def topic(self, session: SessionRecord, frame: Frame) -> None:
        """TOPIC: the session gives a number to a topic."""
        body = decode_body(frame.body, Topic)
        try:
            name = check_topic(body.name, reserved=body.name.startswith("$inbox/"))
        except InvalidValue as error:
            raise ProtocolError(str(error), Code.INVALID) from error
        old = session.publishers.get(frame.number)
        if old is None and len(session.publishers) >= TOPICS_PER_SESSION_MAX:
            raise ProtocolError(f"topics_per_session_max: over the limit of {TOPICS_PER_SESSION_MAX}", Code.LIMIT)
        if old is not None:
            if old.topic.line is not None:
                old.topic.line.settle()
            session.streams = {stream: other for stream, other in session.streams.items() if other is not old}
            self._abort(old, f"the publisher {session.name!r} has named its topic anew")
            self._forget(old)
        may_publish, may_request = may(session.rights, name)
        try:
            # A topic that one has no right to does not come into being.
            record = self._room.topic(name) if may_publish or may_request else TopicRecord(name, NOTHING_KEPT)
        except LimitExceeded:
            record, may_publish = TopicRecord(name, NOTHING_KEPT), False
        if record.line is not None:
            # It has one publisher.
            record.line.settle()
        publisher = Publisher(record, frame.number, session)
        publisher.restricted = not (may_publish and may_request)
        record.publishers += 1
        session.publishers[frame.number] = publisher
        session.last_publisher = None
        self.tell_policy(session, publisher)

    def tell_policy(self, session: SessionRecord, publisher: Publisher) -> None:
        """Tells a publisher of its topic's policy, unless it has been told."""
        policy = for_publishers(publisher.topic.policy)
        if policy != publisher.told:
            publisher.told = policy
            publisher.refusal_told = False
            body = encode_body(policy)
            session.session.put(Frame(Kind.POLICY, lane=Lane.CONTROL, number=publisher.number, body=body))
            self.flush(session)

    def publish(self, session: SessionRecord, frame: Frame) -> None:
        """PUBLISH: a message, a batch, or the start of a large message."""
        publisher = session.last_publisher
        if publisher is None or publisher.number != frame.number:
            publisher = session.last_publisher = session.publishers.get(frame.number)
        if publisher is None:
            raise ProtocolError(f"PUBLISH to topic number {frame.number}, which no TOPIC has named")
        flags, payload, topic = frame.flags, frame.payload, publisher.topic
        if topic.line is not None and not topic.line.draining:
            # What its publisher has written there before comes first; from here on it uses the socket.
            topic.line.settle()
        count = frame.count if flags & _BATCH else 1
        if flags & _BATCH and not 0 < count <= min(BATCH_MESSAGES_MAX, len(payload) // ENTRY_BYTES):
            raise ProtocolError(f"batch of {count} messages in {len(payload)} bytes; the limit is {BATCH_MESSAGES_MAX}")
        lane, stream, first = frame.lane, None, None
        if flags & _SHARED:
            stream, first = borrowed(session, frame)
            self.shared_bytes += frame.total_bytes
        if publisher.restricted:
            if self._deny(session, publisher, frame, count):
                return
            topic = publisher.topic
        if topic.special or self.refusal is not None:
            if self._refuse(session, publisher, frame, count):
                return
            flags, payload = frame.flags, frame.payload
            count = frame.count if flags & _BATCH else 1
            if lane == _DEFAULT:
                lane = _LANES[topic.policy.lane]
        body = frame.body
        if stream is not None:
            if self.places and stays(self, session, publisher, frame, stream):
                return
            # To all but those who can share it, it is a large message that has arrived at once.
            total_bytes, taken_bytes = frame.total_bytes, charge(frame.total_bytes)
            flags, payload = flags ^ (_SHARED | _CHUNKED), b""
        elif flags & _CHUNKED:
            stream = self._open(session, publisher, frame)
            first, total_bytes, taken_bytes = stream.last, frame.total_bytes, 0
        else:
            total_bytes = taken_bytes = payload_bytes(payload)
        message = Message.__new__(Message)
        message.fill(
            topic.name, publisher.sender, topic.ring.next_sequence, count, lane, flags, frame.content,
            frame.time_ns, body, payload, total_bytes + len(body), stream, first,
        )  # fmt: skip
        if frame.count and not flags & _BATCH:
            if frame.count > PRIORITY_MAX:
                raise ProtocolError(f"message with priority {frame.count}: priorities are 0 to {PRIORITY_MAX}")
            message.priority = frame.count
        if frame.lane != _CONTROL:
            # Control messages are free.
            publisher.used_messages += count
            publisher.used_bytes += len(body) + taken_bytes
            if publisher.used_messages >= self._half_messages or publisher.used_bytes >= self._half_bytes:
                self._half_used(session, publisher)
        if flags and not self._follow_flags(session, publisher, frame, message, flags):
            return
        self.router.route(topic, message)
        one_by_one = not flags & ~_ONE_BY_ONE or frame.flags == _SHARED
        if one_by_one and frame.lane == _DEFAULT and topic.line is None and session.lines:
            publisher.until_line -= 1
            if not publisher.until_line:
                self.consider_line(publisher, stream)

    def _follow_flags(
        self, session: SessionRecord, publisher: Publisher, frame: Frame, message: Message, flags: int
    ) -> bool:
        """Sees to acknowledgements, requests, replies and traces; says whether the message is still to be routed."""
        topic, stream = publisher.topic, message.stream
        routed = not flags & _REQUEST or self.router.routes(topic).responds
        acknowledge = flags & _ACKNOWLEDGE and not flags & _REQUEST
        if stream is not None and not stream.complete:
            publisher.message = message
            publisher.acknowledge = frame.target if acknowledge else 0
            publisher.request = frame.sequence if flags & _LAST else 0
        elif acknowledge:
            self._acknowledge(session, frame.target, message.sequence + message.count - 1)
        elif flags & _LAST:
            self.requests.replied(session, topic.name, frame.sequence)
        if flags & _REQUEST and routed:
            self.requests.ask(session, frame, message, self.router.responders(topic))
        elif not routed:
            self._refuse_request(session, frame, topic.name)
            # It has no place among the topic's messages.
            message.sequence = 0
            message.release()
            return False
        if flags & _TRACED and self.traced is not None:
            self.traced(topic, message)
            return False
        return True

    def _refuse(self, session: SessionRecord, publisher: Publisher, frame: Frame, count: int) -> bool:
        """Refuses what is longer than the topic's policy allows, and all there is no memory for; says whether nothing
        of the frame is left.

        A batch is left with the messages that are short enough. The chunks of a large message are on their way already:
        they come in and go nowhere.
        """
        maximum = -1 if self._is_too_much(publisher, frame) else publisher.topic.policy.max_message_bytes
        chunked = frame.flags & _CHUNKED
        shared = frame.flags & _SHARED
        longest = frame.total_bytes if chunked or shared else len(frame.payload)
        if maximum is None or longest <= maximum:
            return False
        refused, used_bytes = count, len(frame.body) + (charge(longest) if shared else len(frame.payload))
        if frame.flags & _BATCH:
            entries = split_batch(bytes(frame.payload), count)
            longest = max(len(entry[3]) for entry in entries)
            fitting = [entry for entry in entries if len(entry[3]) <= maximum]
            refused = count - len(fitting)
            if not refused:
                return False
            if fitting:
                used_bytes = len(frame.payload)
                frame.payload, frame.count = join_batch(fitting), len(fitting)
                used_bytes -= len(frame.payload)
        elif chunked:
            self._swallow(session, publisher, frame)
        publisher.topic.refused += refused
        self._tell_refusal(session, publisher, frame, longest, maximum)
        frame.flags &= ~_ACKNOWLEDGE
        self.use(session, publisher, frame, refused, used_bytes)
        return refused == count

    def _swallow(self, session: SessionRecord, publisher: Publisher, frame: Frame) -> None:
        """The chunks of a large message will come in and go nowhere."""
        publisher.message = Message(
            publisher.topic.name, publisher.sender, 0, 1, frame.lane, frame.flags, frame.content, frame.time_ns,
            frame.body, b"", frame.total_bytes + len(frame.body), self._open(session, publisher, frame),
        )  # fmt: skip
        publisher.acknowledge = publisher.request = 0

    def use(self, session: SessionRecord, publisher: Publisher, frame: Frame, messages: int, size_bytes: int) -> None:
        """What is refused takes credit like any other."""
        if frame.lane != _CONTROL:
            publisher.used_messages += messages
            publisher.used_bytes += size_bytes
            if publisher.used_messages >= self._half_messages or publisher.used_bytes >= self._half_bytes:
                self._half_used(session, publisher)

    def _deny(self, session: SessionRecord, publisher: Publisher, frame: Frame, count: int) -> bool:
        """Refuses what the session may not publish or request, or has no topic for; says whether it did."""
        verb = Verb.REQUEST if frame.flags & _REQUEST else Verb.PUBLISH
        name, full = publisher.topic.name, None
        if may(session.rights, name)[verb is Verb.REQUEST]:
            full = self._room.settle(publisher, self._move)
            if full is None:
                self.tell_policy(session, publisher)
                return False
        if frame.flags & _CHUNKED:
            self._swallow(session, publisher, frame)
        answered = frame.flags & (_ACKNOWLEDGE | _REQUEST)
        if full is not None:
            self.answer(session, publisher, frame, failure_of(full))
        elif answered or not publisher.refusal_told:
            publisher.refusal_told = publisher.refusal_told or not answered
            try:
                self.authority.deny(session, verb, name)
            except PermissionDenied as error:
                self.answer(session, publisher, frame, failure_of(error))
        size_bytes = charge(frame.total_bytes) if frame.flags & _SHARED else len(frame.payload)
        self.use(session, publisher, frame, count, len(frame.body) + size_bytes)
        return True

    def follow_rights(self, session: SessionRecord) -> None:
        """What a session may do has changed: it is asked anew about the topics that it has named."""
        for publisher in list(session.publishers.values()):
            may_publish, may_request = may(session.rights, publisher.topic.name)
            restricted = not (may_publish and may_request)
            if publisher.restricted and (may_publish or may_request):
                try:
                    self._move(publisher, self.router.topic(publisher.topic.name))
                except LimitExceeded as error:
                    log.warning("permission.not_given session=%d cause=%s", session.id, error)
                    continue
            if publisher.restricted or restricted:
                publisher.restricted = restricted
                # It forgets what it was told of earlier rights, and hears of these when it publishes.
                publisher.told = None
                self.tell_policy(session, publisher)

    def _move(self, publisher: Publisher, topic: TopicRecord) -> None:
        """A publisher that had no right to its topic belongs to it from now on."""
        if publisher.topic is not topic:
            self._forget(publisher)
            publisher.topic = topic
            topic.publishers += 1
            if publisher.held_back:
                publisher.held_back = False
                self.top_up(publisher.session, publisher)

    def _is_too_much(self, publisher: Publisher, frame: Frame) -> bool:
        """Whether there is no memory for a message: one that takes some, and that is not what somebody waits for."""
        if self.refusal is None or frame.flags & _SHARED:
            return False
        if frame.lane == _CONTROL and payload_bytes(frame.payload) < PLACED_BYTES_MIN and not frame.flags & _CHUNKED:
            return False
        return not publisher.topic.name.startswith("$inbox/")

    def _tell_refusal(
        self, session: SessionRecord, publisher: Publisher, frame: Frame, size_bytes: int, maximum: int
    ) -> None:
        """Answers who waits for an answer; tells others once, since they have been told the policy as well. Nobody has
        been told how much memory there is, so of that everybody is told each time."""
        answered = frame.flags & (_ACKNOWLEDGE | _REQUEST)
        if not answered and publisher.refusal_told and maximum >= 0:
            return
        publisher.refusal_told = publisher.refusal_told or (not answered and maximum >= 0)
        words = f"the policy of topic {publisher.topic.name!r}: publish shorter messages, or declare another limit"
        failure = Failure(Code.LIMIT, words, "max_message_bytes", size_bytes, maximum)
        if maximum < 0 and self.refusal is not None:
            failure = failure_of(self.refusal)
        self.answer(session, publisher, frame, failure)

    def answer(self, session: SessionRecord, publisher: Publisher, frame: Frame, failure: Failure) -> None:
        """Tells a publisher why a message was refused: whoever waits for an answer to it, else about the topic."""
        answered = frame.flags & (_ACKNOWLEDGE | _REQUEST)
        number, target = (0, frame.target) if answered else (publisher.number, 0)
        error = Frame(Kind.ERROR, lane=Lane.CONTROL, number=number, target=target, body=encode_body(failure))
        session.session.put(error)
        self.flush(session)

    def _refuse_request(self, session: SessionRecord, frame: Frame, topic: str) -> None:
        """Nobody responds. The chunks of a large request are on their way already: they come in and go nowhere."""
        body = encode_body(Failure(Code.NO_RESPONDERS, f"nobody responds at {topic!r}"))
        session.session.put(Frame(Kind.ERROR, lane=Lane.CONTROL, target=frame.target, body=body))
        self.flush(session)

    def _open(self, session: SessionRecord, publisher: Publisher, frame: Frame) -> Stream:
        if publisher.message is not None:
            raise ProtocolError(
                f"a second large message on topic {publisher.topic.name!r} before the first is complete"
            )
        if len(session.streams) >= STREAMS_PER_SESSION_MAX or frame.stream in session.streams:
            raise ProtocolError(f"stream {frame.stream} is in use, or more than {STREAMS_PER_SESSION_MAX} are open")
        if frame.payload:
            raise ProtocolError("the first frame of a large message has a payload; it belongs in its chunks")
        session.streams[frame.stream] = publisher
        return Stream()

    def chunk(self, session: SessionRecord, frame: Frame) -> None:
        """CHUNK: more of a large message."""
        publisher = session.streams.get(frame.stream)
        message = publisher.message if publisher is not None else None
        if publisher is None or message is None or message.stream is None:
            raise ProtocolError(f"CHUNK of stream {frame.stream}, which no PUBLISH has opened")
        stream, size = message.stream, len(frame.payload)
        complete = frame.flags & _LAST != 0
        expected = message.size_bytes - len(message.body)
        arrived = stream.received_bytes + size
        if not complete and size < _PLACED_BYTES_MIN:
            # Each chunk costs more than its bytes, which are all that its publisher's credit counts.
            raise ProtocolError(f"chunk of {size} bytes: all but the last have at least {PLACED_BYTES_MIN} bytes")
        if arrived > expected or complete != (arrived == expected):
            raise ProtocolError(f"stream {frame.stream} announced {expected} bytes and has {arrived}, last={complete}")
        if complete:
            publisher.message = None
            del session.streams[frame.stream]
        stream.append(frame.payload, complete)
        if complete:
            self.router.complete(publisher.topic, message)
        if stream.watchers:
            stream.watchers = [watcher for watcher in stream.watchers if watcher.watch(message)]
        # Of the lane in which it was sent, which a policy may have changed for its readers.
        if frame.lane != _CONTROL:
            publisher.used_bytes += size
            if publisher.used_bytes >= self._half_bytes:
                self._half_used(session, publisher)
        if complete and publisher.acknowledge:
            self._acknowledge(session, publisher.acknowledge, message.sequence)
        if complete and publisher.request:
            self.requests.replied(session, message.topic, publisher.request)

    def abort(self, session: SessionRecord, frame: Frame) -> None:
        """STREAM_ABORT: the publisher gives a large message up."""
        publisher = session.streams.pop(frame.stream, None)
        if publisher is None:
            raise ProtocolError(f"STREAM_ABORT of stream {frame.stream}, which is not open")
        self._abort(publisher, decode_body(frame.body, Failure).reason)

    def _abort(self, publisher: Publisher, reason: str) -> None:
        message, publisher.message = publisher.message, None
        if message is not None and message.stream is not None:
            self.router.retained_bytes -= publisher.topic.ring.discard(message)
            self.router.give_up(publisher.topic, message)
            message.stream.abort(reason)

    def disconnect(self, session: SessionRecord) -> None:
        """The session is over; its unfinished messages are aborted."""
        for publisher in session.publishers.values():
            self._abort(publisher, f"the publisher {session.name!r} is gone")
            self._forget(publisher)
        session.publishers.clear()
        session.last_publisher = None
        session.streams.clear()

    def _forget(self, publisher: Publisher) -> None:
        topic = publisher.topic
        topic.publishers -= 1
        if not topic.publishers:
            self._room.left()
        if publisher.held_back:
            topic.held_back = tuple(other for other in topic.held_back if other is not publisher)
            self.pressure.look_again(topic)

    def _acknowledge(self, session: SessionRecord, reference: int, sequence: int) -> None:
        session.session.put(Frame(Kind.DONE, lane=Lane.CONTROL, target=reference, sequence=sequence))
        self.flush(session)

    # Credit.

    def _half_used(self, session: SessionRecord, publisher: Publisher) -> None:
        """Half of a publisher's credit is used up."""
        if (
            publisher.used_messages > self.window_messages + BATCH_MESSAGES_MAX
            or publisher.used_bytes > self.window_bytes + 2 * FRAME_PAYLOAD_BYTES_MAX
        ):
            raise ProtocolError(f"topic {publisher.topic.name!r}: the publisher ignores its credit", Code.LIMIT)
        self.top_up(session, publisher)

    def top_up(self, session: SessionRecord, publisher: Publisher) -> None:
        """Gives a publisher its whole window again, unless a subscription holds it back."""
        if publisher.held_back:
            return
        topic = publisher.topic
        if self.pushing_back or self.flow.is_over:
            publisher.held_back = True
            topic.held_back += (publisher,)
            if self.flow.is_over:
                self.flow.blocking[topic] = None
            return
        blockers = self.router.routes(topic).blockers(publisher.message)
        if topic.line is not None:
            blockers += topic.line.blockers()
        if blockers:
            publisher.held_back = True
            topic.held_back += (publisher,)
            for blocker in blockers:
                blocker.blocking[topic] = None
            self.pressure.held_back(topic, blockers)
            return
        messages, publisher.used_messages = publisher.used_messages, 0
        size_bytes, publisher.used_bytes = publisher.used_bytes, 0
        session.session.put(
            Frame(
                Kind.CREDIT, Flag.TOPIC_CREDIT, Lane.CONTROL,
                number=publisher.number, count=messages, total_bytes=size_bytes,
            )
        )  # fmt: skip
        self.flow.granted(size_bytes)
        self.flush(session)

    def unblock(self, blocker: Subscription | Work | Flow) -> None:
        """A subscription, a work or a tenant is under its limit again: its publishers are looked at anew."""
        topics, blocker.blocking = list(blocker.blocking), {}
        for topic in topics:
            self.look_again(topic)

    def look_again(self, topic: TopicRecord) -> None:
        """The publishers of a topic that are held back may go on, unless somebody still holds them back."""
        self.pressure.look_again(topic)
        waiting, topic.held_back = topic.held_back, ()
        for publisher in waiting:
            publisher.held_back = False
            self.top_up(publisher.session, publisher)
