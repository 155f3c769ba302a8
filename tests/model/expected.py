"""What one subscription, or one queue group, is to get."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clients.reading.messages import Message
    from tests.model.reference import Sent


ENTRY_BYTES = 16
"""What a message takes in a batch beside its body and payload (docs/wire.md section 6), and perhaps in a bound."""


def check_content(message: Message, sent: Sent) -> None:
    """What was received is what was published, bit by bit."""
    assert message.sender == sent.publisher, (message, sent)
    assert message.lane == sent.lane, (message, sent)
    assert not sent.aborted, f"{sent} was never complete"
    assert message.payload == sent.payload, f"{sent} has other bytes: {len(message.payload)}"
    assert dict(message.headers) == sent.headers, (message.headers, sent.headers)


class Due:
    """A message that a subscription waits for, or of which it waits to hear that it was dropped.

    Attributes:
        index: it is the so-many-th for this subscription.
        must: it must come, unless older ones may be dropped for newer ones.
        never: it must not come.
    """

    __slots__ = ("expected", "index", "must", "never", "sent")

    def __init__(self, expected: Expected, sent: Sent, index: int, *, must: bool, never: bool = False) -> None:
        self.expected = expected
        self.sent = sent
        self.index = index
        self.must = must
        self.never = never

    @property
    def required(self) -> bool:
        return self.must and self.index >= self.expected.may_drop_before and not self.sent.aborted

    def aborted(self) -> None:
        """The publisher has given it up: it takes no room any more, or not for long."""
        if self.must:
            self.expected.unread_least = max(0, self.expected.unread_least - 1)


class Expected:
    """What one subscription, alone, must and may get.

    How many messages are unread, by the broker's count, lies between two bounds, because of some messages it is open
    whether they were dropped.

    Attributes:
        arrived: messages for it, ever.
        received: messages that the application has got, ever.
        may_drop_before: of what arrived before this index, the policy may have dropped any.
        ask_floor: of `latest`: nothing older than this index answers the application's question.
        pressed: since all was read, messages waited that are longer together than the bound in bytes.
        streamed: since all was read, a large message has come.
        lanes: in which something has arrived since all was read.
        pushed: of `block`: what each publisher on each topic has sent since more was unread than the bound.
        untold: by topic, how many lost messages no message's `gap` has told of yet.
    """

    def __init__(self, key: tuple[str, int], topic_filter: str, overflow: str, bounds: tuple[int, int]) -> None:
        self.key = key
        self.filter = topic_filter
        self.overflow = overflow
        self.messages_max, self.bytes_max = bounds
        self.arrived = self.received = 0
        self.never = 0
        self.unread_least = self.unread_most = self.unread_bytes = 0
        self.may_drop_before = 0
        self.ask_floor = 0
        self.pressed = self.streamed = False
        self.lanes: set[str] = set()
        self.pushed: dict[tuple[str, str], int] = {}
        self.untold: dict[str, int] = {}
        self._due: dict[tuple[str, str], deque[Due]] = {}
        self._last_index: dict[str, int] = {}

    # What comes.

    def offer(self, sent: Sent) -> None:
        """A message for this subscription has reached the broker."""
        self.arrived += 1
        self.lanes.add(sent.lane)
        index = self.arrived
        fits = self.unread_bytes + sent.size_bytes + ENTRY_BYTES * (self.unread_most + 1) <= self.bytes_max
        self.pressed |= not fits
        self.streamed |= sent.fate.value == "open"
        room = self.unread_most < self.messages_max
        must = True
        if self.overflow == "drop_newest":
            if self.unread_least >= self.messages_max:
                self.never += 1
                self._queue_of(sent).append(Due(self, sent, index, must=False, never=True))
                return
            must = room and fits
        elif self.overflow == "drop_oldest":
            if not (room and fits):
                self.may_drop_before = index + 1
        elif self.overflow == "latest":
            must = False
        else:
            # Nothing holds back the publisher of a control message.
            must = sent.lane != "control" or fits
        self._append(Due(self, sent, index, must=must))

    def check_pushed(self, sent: Sent, window_messages: int) -> None:
        """Whoever publishes to a `block` subscription that is full has a window's worth of messages, and then waits.

        The batch that fills it, another window's worth at most, is counted here as well, and so is the one frame by
        which a publisher may be over its credit.
        """
        if self.overflow != "block" or sent.lane == "control" or self.streamed:
            return
        if self.unread_least <= self.messages_max:
            self.pushed.clear()
            return
        key = sent.publisher, sent.topic
        self.pushed[key] = pushed = self.pushed.get(key, 0) + 1
        assert pushed <= 2 * window_messages + 1, f"{self} is full, and {key} has sent it {pushed} more"

    def _append(self, due: Due) -> None:
        sent = due.sent
        self.unread_most += 1
        self.unread_least += due.must
        self.unread_bytes += sent.size_bytes
        self._queue_of(sent).append(due)
        if sent.fate.value == "open":
            sent.dues.append(due)

    def _queue_of(self, sent: Sent) -> deque[Due]:
        return self._due.setdefault((sent.topic, sent.lane), deque())

    def replay(self, kept: list[Sent]) -> None:
        """What the topics keep comes first; of different topics in any order."""
        fits = sum(sent.size_bytes + ENTRY_BYTES for sent in kept) <= self.bytes_max
        must = self.overflow == "block" or (len(kept) <= self.messages_max and fits and self.overflow != "latest")
        for sent in kept:
            self.arrived += 1
            self.lanes.add(sent.lane)
            self.streamed |= sent.fate.value == "open"
            self._append(Due(self, sent, self.arrived, must=must and (sent.lane != "control" or fits)))
        if not must:
            self.pressed = True
            self.unread_most = min(len(kept), self.messages_max)
            self.unread_least = self.unread_most if fits and not any(sent.dues for sent in kept) else 0

    def credited(self, messages: int, size_bytes: int) -> None:
        """The broker hears that so much was taken."""
        self.unread_most = max(0, self.unread_most - messages)
        self.unread_least = max(0, self.unread_least - messages)
        self.unread_bytes = max(0, self.unread_bytes - size_bytes)
        if self.unread_least <= self.messages_max:
            self.pushed.clear()
        if messages:
            # Of `latest` this is the question for the newest message.
            self.ask_floor = self.arrived

    # What is received.

    def got(self, message: Message, sent: Sent) -> None:
        """The application has got a message."""
        check_content(message, sent)
        due, lost = self._due.get((sent.topic, sent.lane)), 0
        while due:
            head = due.popleft()
            if head.sent is sent:
                break
            assert not head.required, f"{self}: {head.sent} is missing before {sent}"
            lost += 1
        else:
            raise AssertionError(f"{self}: {sent} came twice, out of order, or was never for it")
        assert not head.never, f"{self}: there was no room for {sent}"
        self._check_gap(message, sent, lost)
        self.received += 1
        self._last_index[sent.lane] = head.index
        if self.overflow == "latest":
            assert head.index >= self.ask_floor or self.ask_floor_open(), f"{self}: {sent} is not the newest"

    def _check_gap(self, message: Message, sent: Sent, lost: int) -> None:
        """What is missing is told where it is missing; across lanes, of which one overtakes the other, at some time."""
        topic = sent.topic
        untold = self.untold.get(topic, 0) + lost
        if sum(name == topic for name, _ in self._due) == 1:
            assert message.gap == untold, f"{self}: gap of {message.gap} ahead of {sent}, {untold} are missing"
        self.untold[topic] = untold - message.gap

    def ask_floor_open(self) -> bool:
        """Whether what was kept came in an order that is not told, so that the newest is not known."""
        return self.pressed

    def newest_unread(self) -> list[Sent]:
        """Of `drop_oldest`: what has come since the last message that the application has got, lane by lane."""
        unread = [
            due
            for waiting in self._due.values()
            for due in waiting
            if due.index > self._last_index.get(due.sent.lane, 0)
        ]
        # While a large message is arriving, which others may hold up, what it has not pushed out yet can be read.
        self.pressed |= any(due.sent.fate.value == "open" for due in unread)
        return [due.sent for due in sorted(unread, key=lambda due: due.index)]

    # When all is read.

    def check_settled(self, dropped: int, received_now: list[Sent], unread: list[Sent]) -> None:
        """Everything has come that will come.

        Args:
            dropped: what the application has been told.
            received_now: what it has got after everything had arrived.
            unread: `newest_unread` from before.
        """
        missing = [due.sent for waiting in self._due.values() for due in waiting if due.required]
        assert not missing, f"{self}: {missing} never came"
        assert self.arrived == self.received + dropped, f"{self}: {dropped} dropped"
        assert dropped >= self.never, f"{self}: {dropped} dropped, there was no room for {self.never}"
        for (topic, _), waiting in self._due.items():
            self.untold[topic] = self.untold.get(topic, 0) + len(waiting)
        assert all(untold >= 0 for untold in self.untold.values()), f"{self}: too much was told: {self.untold}"
        if self.overflow == "drop_oldest":
            self._check_newest(received_now, unread)
        self._due.clear()
        self.pushed.clear()
        self.lanes.clear()
        self.pressed = self.streamed = False
        self.unread_least = 0
        self.unread_most = min(self.unread_most, self.messages_max // 4 if self.messages_max > 16 else 0)
        self.unread_bytes = min(self.unread_bytes, self.bytes_max // 8)

    def _check_newest(self, received: list[Sent], unread: list[Sent]) -> None:
        """The newest were kept; of several lanes it is open which one loses how many."""
        if self.pressed or len(self.lanes) > 1 or any(sent.aborted for sent in unread):
            return
        newest = unread[-self.messages_max :]
        assert sorted(map(id, received)) == sorted(map(id, newest)), f"{self}: got {received}, the newest are {newest}"

    def __repr__(self) -> str:
        return (
            f"<{self.key} {self.filter!r} {self.overflow} max={self.messages_max}/{self.bytes_max} "
            f"arrived={self.arrived} received={self.received}>"
        )


class Member:
    """A subscription in a queue group."""

    def __init__(self, group: GroupExpected, key: tuple[str, int], overflow: str, bounds: tuple[int, int]) -> None:
        self.group = group
        self.key = key
        self.filter = group.filter
        self.overflow = overflow
        self.messages_max, self.bytes_max = bounds
        self.received = 0
        self.unread_most = 0
        self._last: dict[tuple[str, str], int] = {}

    def got(self, message: Message, sent: Sent) -> None:
        """The application has got a message."""
        check_content(message, sent)
        self.received += 1
        self.group.got(sent)
        where = sent.topic, sent.lane
        if not self.group.shuffled:
            assert self._last.get(where, 0) < sent.sequence, f"{self.key}: {sent} is out of order"
        self._last[where] = sent.sequence

    def credited(self, messages: int, size_bytes: int) -> None:
        """The broker hears that so much was taken."""


class GroupExpected:
    """What the members of a queue group, together, are to get: each message once.

    Attributes:
        owed: messages that no member has got.
        lost_most: messages that were on their way to members which have left.
        dropped: for members which have left.
        shuffled: a member has left, and what waited for it comes to others behind newer messages.
    """

    def __init__(self, name: str, topic_filter: str) -> None:
        self.name = name
        self.filter = topic_filter
        self.members: list[Member] = []
        self.owed: set[Sent] = set()
        self.lost_most = 0
        self.dropped = 0
        self.shuffled = False
        self._settled_dropped = 0

    def join(self, key: tuple[str, int], overflow: str, bounds: tuple[int, int]) -> Member:
        """A new member."""
        member = Member(self, key, overflow, bounds)
        self.members.append(member)
        return member

    def leave(self, member: Member, delivered: int, dropped: int) -> None:
        """A member is gone."""
        self.members.remove(member)
        self.shuffled = True
        self.lost_most += delivered - member.received
        self.dropped += dropped

    def offer(self, sent: Sent) -> None:
        """A message for the group has reached the broker."""
        self.owed.add(sent)

    def got(self, sent: Sent) -> None:
        """A member has got it."""
        assert sent in self.owed, f"group {self.name!r}: {sent} came twice, or was never for it"
        self.owed.remove(sent)

    def check_settled(self, dropped: int) -> None:
        """Everything has come that will come; `dropped` is what the members have been told together."""
        total = dropped + self.dropped
        dropped = total - self._settled_dropped
        missing = len(self.owed)
        assert missing <= dropped + self.lost_most, f"group {self.name!r}: {self.owed} never came, {dropped} dropped"
        if not self.shuffled:
            assert missing == dropped, f"group {self.name!r}: {self.owed} never came, {dropped} dropped"
        self.owed.clear()
        self.lost_most, self._settled_dropped, self.shuffled = 0, total, False
