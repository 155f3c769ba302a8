"""Messages that lie in the memory of a device: the broker keeps the books, and never has the bytes.

    publisher             broker                                    readers of the topic that take places there
    ARENA    -----------> is told on which topic it comes --------> ARENA: they map it, or cannot
    MAPPED   <----------- all of them have answered <-------------- MAPPED
    PUBLISH  -----------> all subscriptions map it, and the topic keeps nothing:
    DONE     <----------- taken, DELIVER -------------------------> a copy of it
    ERROR 19 <----------- else not: the publisher sends the bytes

A message that was taken can be delivered as it is: whoever is to get it has the memory mapped, and keeps it until
nothing is lent there any more. So a publisher waits for each answer, and a subscription that comes between two messages
gets the second one, as bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, cast

from broker.errors import InvalidValue, LimitExceeded, ProtocolError
from broker.limits_devices import DEVICE_NAME_BYTES_MAX, DEVICE_TOKEN_BYTES
from broker.protocol.bodies import Failure, decode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Frame
from broker.protocol.places import charge
from broker.protocol.sharing import DeviceArena, HasDescriptor, Passage, mapped_frame

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.state.delivery import Subscription
    from broker.state.records import SessionRecord
    from broker.state.sharing import Arena, Loan, Shares
    from broker.state.topics import Publisher, Router, TopicRecord
    from broker.topics.messages import Stream


_PLAIN: Final = int(Flag.SHARED | Flag.ACKNOWLEDGE)
"""What a message in a device's memory is: no request or reply, and not traced, of which others keep the bytes."""


class PassedOn:
    """Memory of a device, of which the broker has the descriptor alone.

    Attributes:
        descriptor: -1 once it was closed.
        size_bytes: its length, as its publisher says.
        identity: the number of the descriptor's file.
        name: of the device.
        token: its first bytes, as its publisher says.
    """

    __slots__ = ("_handle", "descriptor", "identity", "name", "size_bytes", "token")

    def __init__(self, handle: HasDescriptor, frame: Frame, told: DeviceArena) -> None:
        self._handle: HasDescriptor | None = handle
        self.descriptor = handle.descriptor
        self.size_bytes = frame.total_bytes
        self.identity = frame.sequence
        self.name = told.device
        self.token = told.token

    @property
    def address(self) -> int:
        """Nowhere here."""
        return 0

    def view(self, offset: int, size_bytes: int, holder: object) -> memoryview:
        """Nobody here can have the bytes, and `refusal` sees to it that nobody needs them."""
        raise ProtocolError(f"{size_bytes} bytes at {offset} of {self!r}, which the broker cannot read")

    def keep(self, parts: Iterable[tuple[int, int]]) -> None:
        """There is nothing here to keep."""

    def close_descriptor(self) -> None:
        """It is to be passed on to nobody any more. One that is about to leave is missed by its receiver alone."""
        self._handle, self.descriptor = None, -1

    def __repr__(self) -> str:
        return f"<PassedOn {self.name} {self.size_bytes} bytes fd={self.descriptor}>"


def adopt(passage: Passage, frame: Frame, held: Iterable[Arena], bytes_max: int) -> PassedOn:
    """ARENA of version 2: memory of a device has arrived.

    Args:
        passage: by which.
        frame: what it says.
        held: the other arenas of its publisher.
        bytes_max: what those on devices may be long together.

    Raises:
        InvalidValue: none is shared here.
        LimitExceeded: it is too long, or has not arrived.
        ProtocolError: the frame is malformed.
    """
    if not bytes_max:
        raise InvalidValue(
            "arena of version", frame.count, "is in the memory of a device, and device_memory_bytes is 0"
        )
    told = decode_body(frame.body, DeviceArena)
    if not 0 < len(told.device) <= DEVICE_NAME_BYTES_MAX or len(told.token) != DEVICE_TOKEN_BYTES:
        # One without a device would pass for host memory, of which the broker has the bytes.
        raise ProtocolError(
            f"arena of a device named in {len(told.device)} characters, 1 to {DEVICE_NAME_BYTES_MAX}, "
            f"with a token of {len(told.token)} bytes, {DEVICE_TOKEN_BYTES}"
        )
    handle = passage.take_device(frame.sequence)
    size_bytes = frame.total_bytes + sum([arena.size_bytes for arena in held if arena.device])
    if size_bytes > bytes_max:
        raise LimitExceeded("device_memory_bytes", size_bytes, bytes_max)
    if handle is None:
        raise LimitExceeded("descriptors", frame.sequence, 0, "that of the memory has not arrived")
    return PassedOn(handle, frame, told)


class Introduced:
    """An arena that is new to the readers of a topic; its publisher hears of it once they have all answered."""

    def __init__(self, shares: Shares, arena: Arena, number: int, readers: list[Shares]) -> None:
        """Args:
        shares: its publisher's.
        arena: the arena.
        number: its publisher's for it.
        readers: who is to map it; those that have not answered are kept.
        """
        self._shares = shares
        self._arena = arena
        self._number = number
        self._readers = readers
        self._told = False

    def without(self, reader: Shares) -> None:
        """A reader is gone, and will not answer."""
        self._readers.remove(reader)
        self.answered()

    def answered(self) -> None:
        """A reader has said whether it can map it."""
        # Who has answered may be gone by the time the others do, and is not to be asked again.
        self._readers = [reader for reader in self._readers if not reader.knows(self._arena, self)]
        if not self._readers and not self._told:
            self._told = True
            self._shares.tell(mapped_frame(self._number, mapped=True, name=self._arena.number))


class _Nobody:
    """Who does not wait for the answer."""

    def answered(self) -> None:
        """It matters with the next message."""


_NOBODY: Final = _Nobody()


def introduce(record: SessionRecord, arena: Arena, frame: Frame) -> None:
    """Tells those who read a topic in the memory of this device that there is some, and then its publisher."""
    topic, router = decode_body(frame.body, DeviceArena).topic, record.tenant.router
    assert record.shares is not None
    known = router.topics.get(topic)
    subscriptions = () if known is None else router.routes(known).everyone
    readers = [shares for each in subscriptions if (shares := _taking(each, arena.device)) is not None]
    Introduced(record.shares, arena, frame.number, list(dict.fromkeys(readers))).answered()


def _taking(subscription: Subscription, device: str) -> Shares | None:
    """What the session of a subscription shares, if the subscription takes messages in a device's memory."""
    shares = subscription.session.shares
    if shares is None or not shares.reads or device not in shares.devices.get(subscription.number, ()):
        return None
    return shares


def refusal(router: Router, topic: TopicRecord, loan: Loan, frame: Frame) -> Failure | None:
    """Why a message in the memory of a device cannot be taken as it is; None if it can.

    Raises:
        ProtocolError: it is one that cannot lie there, or whose publisher does not wait for the answer.
    """
    if frame.flags != _PLAIN:
        raise ProtocolError(f"PUBLISH with flags {frame.flags} in the memory of a device, where they are {_PLAIN}")
    routes, ring, size_bytes = router.routes(topic), topic.ring, loan.size_bytes + len(frame.body)
    if ring.keeps_last or (ring.messages_max and size_bytes <= ring.bytes_max):
        return _failure(f"topic {topic.name!r} keeps messages of {size_bytes} bytes")
    if routes.queue_groups or routes.works or topic.policy.acknowledge or routes.responds:
        return _failure(f"topic {topic.name!r} has a queue group or a responder")
    asked = False
    for subscription in routes.everyone:
        shares = _taking(subscription, loan.arena.device)
        if shares is None:
            return _failure(f"{subscription.session.name!r} reads {topic.name!r} in host memory, or on another host")
        if not shares.knows(loan.arena, _NOBODY):
            asked = True
            _tell_of_others(shares, loan.arena)
        elif not shares.maps(loan.arena):
            return _failure(f"{subscription.session.name!r} cannot map the memory")
    return _failure(f"a reader of {topic.name!r} is new", is_new=True) if asked else None


class _Publishing(Protocol):
    """What is used of Publishing."""

    router: Router
    shared_bytes: int

    def answer(self, session: SessionRecord, publisher: Publisher, frame: Frame, failure: Failure) -> None: ...

    def use(
        self, session: SessionRecord, publisher: Publisher, frame: Frame, messages: int, size_bytes: int
    ) -> None: ...


def stays(publishing: _Publishing, session: SessionRecord, publisher: Publisher, frame: Frame, stream: Stream) -> bool:
    """Refuses a message that lies in the memory of a device, if somebody cannot get it so; says whether it did."""
    loan = cast("Loan", stream.loan)
    if not loan.arena.device:
        return False
    failure = refusal(publishing.router, publisher.topic, loan, frame)
    if failure is not None:
        publishing.answer(session, publisher, frame, failure)
        publishing.use(session, publisher, frame, 1, len(frame.body) + charge(frame.total_bytes))
        # They come by the socket after all, and count there.
        publishing.shared_bytes -= frame.total_bytes
    return failure is not None


def _tell_of_others(reader: Shares, arena: Arena) -> None:
    """Who is new to one arena of a publisher's is told of all, so that only one message is to be sent as bytes."""
    others = () if arena.owner is None else arena.owner.arenas.values()
    for other in others:
        if other.device == arena.device:
            reader.knows(other, _NOBODY)


def _failure(reason: str, *, is_new: bool = False) -> Failure:
    return Failure(Code.STAGED, reason, value=int(is_new))
