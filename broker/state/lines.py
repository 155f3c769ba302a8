"""Lines: topics whose publisher writes its messages where their readers read them (docs/wire.md section 20).

    publisher              broker                         readers
    PUBLISH ... (socket)   counts them, looks whether all
              <-- LINE --  who read the topic can read it
    DRAIN  ------------->  begins; counts as a reader
                                             -- ATTACH --> map it
    an entry ------------- in shared memory -----------> a message
                           drains: keeps, counts, credits

The broker reads what was written later than the readers, but before anything that depends on it, so that it cannot be
told from what had come by the socket: the topic's ring, its sequences, everybody's credit and all counters are as ever.
A message that was drained counts as sent to its readers, as one does that waits in a socket.

A line is for one publisher and a fixed set of readers. Whatever changes that (a second publisher, another subscription,
a policy, a reader without credit, a message that comes by the socket, the end of a session) ends it: `settle` closes
it, drains it to its final head, takes each reader's right to read, and offers to each, as to any subscription, what it
had not read. All of that is one step of the broker's, which waits for nobody. Later the topic may get another line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from broker.errors import InvalidValue, LimitExceeded, ProtocolError
from broker.limits import (
    LINE_AFTER_MESSAGES,
    LINE_AFTER_MESSAGES_MAX,
    LINE_AGAIN_MESSAGES,
    LINE_DATA_BYTES,
    LINE_OFFER_S,
    LINE_QUEUE_MESSAGES_MIN,
    LINE_READERS_MAX,
    LINE_SHARED_PARTS,
    LINES_MAX,
    LINES_PER_SESSION_MAX,
)
from broker.protocol.bodies import Line, encode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.line import AVAILABLE, DATA_OFFSET, PLACE_BYTES, VERSION, format_ring
from broker.protocol.session import Phase
from broker.protocol.sharing import CommonMemory, mapped_frame
from broker.security.roles import Verb
from broker.state.delivery import Subscription
from broker.state.introductions import Introduction
from broker.state.line_leases import LineLeases
from broker.state.publishing import Publishing
from broker.state.records import SessionRecord
from broker.state.routes import Routes
from broker.state.sharing import Arena, Loan
from broker.state.topic_line import LineReader, TopicLine
from broker.topics.messages import Message, Stream
from broker.topics.policy import Overflow

if TYPE_CHECKING:
    from broker.state.topics import Publisher

log = logging.getLogger(__name__)

LineMemory = Callable[[int], CommonMemory]
INBOX: Final = "$inbox/"
_READ_BY_THEMSELVES: Final = (Overflow.BLOCK, Overflow.DROP_OLDEST)


class Lines:
    """All lines of a broker.

    Attributes:
        publishing: takes what was written.
        offer: gives a subscription a message that it has not read.
    """

    def __init__(
        self,
        publishing: Publishing,
        memory: LineMemory | None,
        descriptor_max: int,
        flush: Callable[[SessionRecord], None],
        offer: Callable[[Subscription, Message], None],
    ) -> None:
        """Args:
        publishing: takes what was written.
        memory: makes memory; None when there are no lines.
        descriptor_max: the highest number that the descriptor of a bell or a line may have, so that others are left.
        flush: called with a session that has something to send.
        offer: gives a subscription a message that it has not read.
        """
        self.publishing = publishing
        self.offer = offer
        self._router = publishing.router
        self._memory = memory if AVAILABLE else None
        self._descriptor_max = descriptor_max
        self._flush = flush
        self._live = self._router.lines
        # Those that their publishers know and have not begun.
        self._offered: dict[int, TopicLine] = {}
        self._last_number = 0
        # Of lines that have ended.
        self._leases: list[LineLeases] = []
        self._introductions: list[Introduction] = []
        publishing.consider_line = self.consider
        publishing.requests.catch_up = self._take_in_requests

    # What clients say.

    def bell(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """BELL: how the client is woken."""
        passage = record.session.passage
        if record.shares is None or passage is None:
            raise ProtocolError("BELL in a session that shares no memory")
        bell = passage.take(frame.sequence)
        if bell is not None and bell.descriptor <= self._descriptor_max and self._memory is not None:
            record.bell, record.bell_identity = bell, frame.sequence

    def look(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """DRAIN: something is on a line. With a count the line begins: that comes behind what the publisher has sent
        before, and may itself be overtaken by a DRAIN in the control lane. Without a line the publisher waits for
        memory.
        """
        line = self._live.get(frame.stream)
        if line is not None and line.publisher.session is record:
            line.drain()
            return
        if not frame.stream:
            self._give_back(record)
            return
        line = self._offered.get(frame.stream)
        if line is None or line.publisher.session is not record or not frame.count:
            # It has ended, which the publisher does not know yet, or has yet to begin.
            return
        del self._offered[line.number]
        if line.begin():
            self._live[line.number] = line
            line.drain()
        else:
            self._after(line.publisher, lasted=False)

    def declined(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """LINE from a publisher: it does not use the line, or not any more."""
        line = self._offered.get(frame.stream) or self._live.get(frame.stream)
        if line is None or line.publisher.session is not record:
            return
        if self._offered.pop(line.number, None) is not None:
            line.drop()
            self._after(line.publisher, lasted=False)
        else:
            line.settle()

    def left(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """ATTACH from a reader: it does not read the line."""
        line = self._live.get(frame.target)
        if line is not None and any(reader.session is record for reader in line.readers):
            line.settle()

    def introduce(self, record: SessionRecord, arena: Arena, own: int) -> None:
        """A publisher has made memory. It is told that the broker has it when the readers of its lines do, too: what
        lies elsewhere ends a line. Of readers that do not answer it does not wait longer than some ticks.
        """
        mapped = mapped_frame(own, mapped=True, name=arena.number)
        lines = [line for line in self._live.values() if line.publisher.session is record and line.arenas]
        left = len(lines)

        def over() -> None:
            nonlocal left
            left -= 1
            if not left:
                self.send(record, mapped)

        if not lines:
            self.send(record, mapped)
        for line in lines:
            self._introduce(Introduction(self, line, arena, own, over))

    def _introduce(self, introduction: Introduction) -> None:
        self._introductions.append(introduction)
        introduction.answered()

    def let_go(self, record: SessionRecord) -> None:
        """RELEASE without a body: there is something to look at in the reader's places."""
        for line in list(self._live.values()):
            if any(reader.session is record for reader in line.readers):
                line.drain()
        self._collect()

    def _give_back(self, record: SessionRecord) -> None:
        """A publisher waits for memory: its readers are asked to tell when they let go of some, if they have not."""
        for _ in range(2):
            for line in list(self._live.values()):
                if line.publisher.session is record:
                    line.drain()
            self._collect()
            shares = record.shares
            if shares is None or shares.gives_back:
                return
            leases = [each for line in self._live.values() for each in line.leases()] + self._leases
            if not sum(each.want() for each in leases if each.publisher is record):
                return

    def _collect(self) -> None:
        """Looks what was let go of that came on lines that have ended."""
        for each in self._leases:
            each.look()
            each.collect()
        self._leases = [each for each in self._leases if len(each)]

    # What happens.

    def tick(self, now_ns: int) -> None:
        """Time passes: takes in what was written, and takes back offers that nobody has taken."""
        self.drain()
        if self._leases:
            self._collect()
        for introduction in self._introductions:
            introduction.looked += 1
            if introduction.looked > 2:
                introduction.give_up()
        self._introductions = [each for each in self._introductions if not each.is_over]
        for line in list(self._offered.values()) if self._offered else ():
            line.offered_ns = line.offered_ns or now_ns
            if now_ns - line.offered_ns > LINE_OFFER_S * 1e9 and line.withdraw():
                del self._offered[line.number]
                self._after(line.publisher, lasted=False)

    def drain(self) -> None:
        """Takes in all that was written: something depends on it."""
        for line in list(self._live.values()):
            line.drain()

    def _take_in_requests(self, inbox: str) -> None:
        """Takes in what a session has asked: the reply to it stands on another line, or came by the socket."""
        for line in list(self._live.values()):
            if line.asks == Flag.REQUEST and line.publisher.session.inbox == inbox:
                line.take_in()

    def take_in(self) -> None:
        """As `drain`; readers have credit on its way."""
        for line in list(self._live.values()) if self._live else ():
            line.take_in()

    def take_in_all(self) -> None:
        """As `take_in`, and what was let go of that came on lines that have ended."""
        self.take_in()
        if self._leases:
            self._collect()

    def end_all(self) -> None:
        """What all lines depend on is about to change."""
        for line in list(self._live.values()):
            line.settle()

    def settle(self) -> None:
        """The broker is about to end."""
        self.end_all()
        self._memory = None

    def disconnect(self, record: SessionRecord) -> None:
        """A session is about to be forgotten: its lines end, those that it reads and those that it writes."""
        for line in list(self._live.values()):
            if line.publisher.session is record or any(reader.session is record for reader in line.readers):
                line.settle()
        for line in list(self._offered.values()):
            if line.publisher.session is record:
                del self._offered[line.number]
                line.drop()
        # They end as all of the session's leases do.
        self._leases = [each for each in self._leases if each.reader is not record]
        record.bell = None

    def consider(self, publisher: Publisher, stream: Stream | None) -> None:
        """Offers a publisher a line for its topic, if all who read that can read a line.

        Args:
            publisher: has sent so many messages one by one that a line may pay.
            stream: of the last one, if that lies in shared memory.
        """
        publisher.until_line = max(publisher.line_after, LINE_AGAIN_MESSAGES)
        if self._memory is None or publisher.session.lines != VERSION or publisher.session.shares is None:
            publisher.until_line = LINE_AFTER_MESSAGES_MAX
            return
        readers = self.readers_of(publisher)
        if readers is None:
            return
        lines = [*self._live.values(), *self._offered.values()]
        own = [line for line in lines if line.publisher.session is publisher.session]
        full = len(lines) >= LINES_MAX or len(own) >= LINES_PER_SESSION_MAX
        if full or any(line.publisher is publisher for line in own):
            return
        arenas = _common_arenas(publisher, [session for session, _ in readers])
        if stream is not None:
            if stream.received_bytes > _shared_bytes_max(readers):
                return
            if isinstance(stream.loan, Loan) and stream.loan.arena.number not in arenas:
                # The readers have just been told of it, or are about to be.
                publisher.until_line = LINE_AFTER_MESSAGES
                return
        self._offer_line(publisher, readers, self._memory, arenas)
        line = self._offered.get(self._last_number)
        shares = publisher.session.shares
        if stream is not None and line is not None and line.publisher is publisher and shares is not None:
            for number, arena in list(shares.arenas.items()):
                if arena.number not in arenas and not arena.device:
                    self._introduce(Introduction(self, line, arena, number, lambda: None))

    def readers_of(self, publisher: Publisher) -> list[tuple[SessionRecord, list[Subscription]]] | None:
        """The sessions that read a publisher's topic, if they and the topic can do without the broker; else None."""
        topic = publisher.topic
        if (
            self.publishing.pushing_back
            or self.publishing.flow.is_bounded
            or (publisher.restricted and not publisher.session.rights.may(Verb.PUBLISH, topic.name))
            or topic.publishers != 1
            or publisher.session.publishers.get(publisher.number) is not publisher
            or topic.special
            or topic.policy.acknowledge
            or topic.arriving
            or publisher.message is not None
            or publisher.held_back
        ):
            return None
        routes = self._router.routes(topic)
        subscriptions = _all_who_read(routes)
        if not subscriptions or (routes.responds and publisher.restricted):
            # Whoever may publish there need not be allowed to ask, and the responder would have read it.
            return None
        readers: dict[SessionRecord, list[Subscription]] = {}
        for subscription in subscriptions:
            if not _reads_by_itself(subscription):
                return None
            readers.setdefault(subscription.session, []).append(subscription)
        return list(readers.items()) if len(readers) <= LINE_READERS_MAX else None

    def _offer_line(
        self,
        publisher: Publisher,
        readers: list[tuple[SessionRecord, list[Subscription]]],
        memory: LineMemory,
        arenas: dict[int, int],
    ) -> None:
        passage = publisher.session.session.passage
        assert passage is not None
        self._last_number = self._last_number % 0xFFFFFFFF + 1
        try:
            ring = memory(DATA_OFFSET + LINE_DATA_BYTES)
            format_ring(ring.address, ring.size_bytes)
            whole = [
                LineReader(session, list(subscriptions), memory(PLACE_BYTES), publisher.session)
                for session, subscriptions in readers
            ]
            asks = _asks(publisher, readers)
            line = TopicLine(self, self._last_number, publisher, ring, whole, asks, arenas)
            handles = [ring.handle(), *(reader.place.handle() for reader in whole)]
            highest = max(handle.descriptor for handle in handles)
            if highest > self._descriptor_max:
                words = "the others are for connections: raise RLIMIT_NOFILE (ulimit -n)"
                raise LimitExceeded("descriptors", highest, self._descriptor_max, words)
        except (InvalidValue, LimitExceeded) as error:
            # In words: the error would keep its frame, and with it what was made, as long as somebody keeps the record.
            log.warning("line.refused topic=%r cause=%s", publisher.topic.name, str(error))
            publisher.until_line = LINE_AFTER_MESSAGES_MAX
            return
        self._offered[line.number] = line
        bells = [reader.session.bell for reader in whole]
        for handle in (*handles, *bells):
            assert handle is not None
            passage.give(handle)
        body = Line(
            [reader.place.identity for reader in whole], [reader.session.bell_identity for reader in whole],
            list(arenas), _shared_bytes_max(readers), *line.keeps,
        )  # fmt: skip
        frame = Frame(
            Kind.LINE, Flag.REQUEST if asks else 0, Lane.CONTROL,
            number=publisher.number, stream=line.number, count=VERSION,
            total_bytes=ring.size_bytes, sequence=ring.identity, body=encode_body(body),
        )  # fmt: skip
        self.send(publisher.session, frame)

    # For lines.

    def ended(self, line: TopicLine, *, lasted: bool) -> None:
        """A line is not in use any more."""
        self._live.pop(line.number, None)
        self._leases += line.leases()
        self._after(line.publisher, lasted=lasted)

    def _after(self, publisher: Publisher, *, lasted: bool) -> None:
        longer = min(publisher.line_after * 4, LINE_AFTER_MESSAGES_MAX)
        publisher.until_line = publisher.line_after = LINE_AFTER_MESSAGES if lasted else longer

    def send(self, record: SessionRecord, frame: Frame) -> None:
        """Sends a frame to a session, if that is open."""
        if record.session.phase is Phase.OPEN:
            record.session.put(frame)
            self._flush(record)

    def fail(self, record: SessionRecord, error: ProtocolError) -> None:
        """A publisher does not keep to the rules."""
        record.session.fail(error)
        self._flush(record)

    def __repr__(self) -> str:
        return f"<Lines live={len(self._live)} offered={len(self._offered)}>"


def _reads_by_itself(subscription: Subscription) -> bool:
    """Whether a subscription can read a line: nothing is decided about a message in its queue at the moment in which
    the message comes."""
    queue, session = subscription.queue, subscription.session
    return (
        session.bell is not None
        and session.shares is not None
        and session.session.phase is Phase.OPEN
        and queue.overflow in _READ_BY_THEMSELVES
        and queue.max_lag is None
        and queue.messages_max >= LINE_QUEUE_MESSAGES_MIN
        and queue.bytes_max >= LINE_DATA_BYTES
        and session.lines == VERSION
    )


def _all_who_read(routes: Routes) -> list[Subscription]:
    """All to which each message of a topic goes; nobody, if some get a part of them, or if several respond."""
    found = list(routes.everyone)
    for group in routes.queue_groups:
        if len(group) != 1 or not group[0].responder:
            return []
        # Alone in its group, it gets every one.
        found.append(group[0])
    responders = sum(subscription.responder for subscription in found)
    return found if not routes.works and responders <= 1 else []


def _common_arenas(publisher: Publisher, readers: list[SessionRecord]) -> dict[int, int]:
    """The arenas in which messages may lie on a line: all readers have mapped them, and none is a device's."""
    shares = publisher.session.shares
    assert shares is not None
    mapped = [reader.shares.maps for reader in readers if reader.shares is not None]
    return {
        arena.number: own
        for own, arena in shares.arenas.items()
        if not arena.device and all(maps(arena) for maps in mapped)
    }


def _shared_bytes_max(readers: list[tuple[SessionRecord, list[Subscription]]]) -> int:
    """How long a message in shared memory may be: with some under way, its readers have to have credit left."""
    queues = [subscription.queue for _, subscriptions in readers for subscription in subscriptions]
    return min(queue.bytes_max for queue in queues) // LINE_SHARED_PARTS


def _asks(publisher: Publisher, readers: list[tuple[SessionRecord, list[Subscription]]]) -> int:
    """The flag that messages of a line may have besides those of all: requests where somebody responds, replies in an
    inbox."""
    if publisher.topic.name.startswith(INBOX):
        return Flag.LAST
    responds = any(subscription.responder for _, subscriptions in readers for subscription in subscriptions)
    return Flag.REQUEST if responds else 0
