"""All groups of one client: which frame belongs to which. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.errors import ConnectionClosed, ProtocolError
from broker.protocol.bodies import Membership, decode_body
from broker.protocol.frames import Frame, Kind, Lane, kind_name
from broker.protocol.session import Session
from clients.collectives.boards import discard
from clients.collectives.entrance import Entrance
from clients.collectives.membership import Place, agree
from clients.collectives.ways import Schedule
from clients.connection.signals import Pending

if TYPE_CHECKING:
    from broker.protocol.links import Reach


class Places:
    """All groups of one client.

    Attributes:
        by_number: those of which it is a member.
        joining: how many it is about to join.
        entrance: by which it is linked with other members.
        call: calls a function as the driver's own threads would; the driver sets it.
        told_of_joins: whether the broker hears of a JOIN that was given up before it is answered.
    """

    def __init__(self) -> None:
        self.by_number: dict[int, Place] = {}
        self.joining = 0
        self.call: Callable[[Callable[[], None]], None] = lambda function: function()
        self.told_of_joins = False
        self._local_host = ""
        self._private = False
        self.entrance = Entrance(lambda function: self.call(function))

    def connected(self, local_host: str, *, private: bool) -> None:
        """There is a connection to the broker.

        Args:
            local_host: this client's own address on the network to the broker.
            private: whether nobody between the two can read along.
        """
        self._local_host, self._private = local_host, private

    def reach(self, schedule: Schedule) -> Reach | None:
        """How other members reach this client; None when they cannot, or had better not.

        Links go in the clear: whoever encrypts the way to the broker has them only by asking for them.

        Raises:
            InvalidValue: $TENSORBUS_LINK_ADDRESS is malformed.
        """
        return self.entrance.reach(schedule, "" if self._private and not schedule.linked else self._local_host)

    def tick(self, now_ns: int) -> None:
        """Time passes: what could not be said before may be certain now."""
        for place in self.by_number.values():
            place.report()
            place.tell_operations(now_ns)

    def farewell(self) -> None:
        """The client is about to close in order."""
        for place in self.by_number.values():
            place.farewell()

    def tidy(self) -> None:
        """Nobody has to be let in any more when the client has left its last group."""
        if not self.by_number and not self.joining:
            self.entrance.close()

    def destination(self, frame: Frame, size_bytes: int) -> memoryview | None:
        """Where the payload of a RESULT belongs, or None when its operation is over."""
        place = self.by_number.get(frame.number)
        operation = place.find(frame) if place is not None else None
        if operation is not None and frame.body:
            agree(operation, frame)
        return operation.destination(frame.stream, frame.count, size_bytes) if operation is not None else None

    def receive(self, session: Session, frame: Frame) -> None:
        """RESULT, TOOK_PART, FAILED or CHANGED."""
        place = self.by_number.get(frame.number)
        # Frames can be on their way when a member leaves.
        if place is None:
            if frame.kind == Kind.CHANGED:
                discard(session.passage, decode_body(frame.body, Membership))
            return
        if frame.kind == Kind.RESULT:
            place.result(frame)
        elif frame.kind == Kind.TOOK_PART:
            place.took_part(frame)
        elif frame.kind == Kind.FAILED:
            place.failed(frame)
        elif frame.kind == Kind.CHANGED:
            place.membership_changed(frame)
        elif frame.kind == Kind.LINKS:
            place.links_decided(frame)
        elif frame.kind == Kind.COMMITTED:
            place.judged(frame)
        elif frame.kind == Kind.FINISHED:
            del self.by_number[frame.number]
            place.finished()
            self.tidy()
        else:
            raise ProtocolError(f"a {kind_name(frame.kind)} frame for a group")

    def disconnected(self, error: ConnectionClosed) -> None:
        """The session is over, and with it every membership."""
        for place in self.by_number.values():
            place.close(error)
        self.by_number.clear()
        self.tidy()


class PendingJoin(Pending):
    """A wish to be a member of a group; the place is taken in the moment in which the answer comes."""

    __slots__ = ("_descriptor", "place", "schedule", "world_size")

    def __init__(self, group: str, world_size: int, schedule: Schedule, descriptor: int) -> None:
        super().__init__(group)
        self.world_size = world_size
        self.schedule = schedule
        self._descriptor = descriptor
        self.place: Place | None = None

    def seat(self, session: Session, places: Places, frame: Frame) -> None:
        """Takes the place that JOINED gives."""
        told = decode_body(frame.body, Membership)
        self.place = places.by_number[frame.number] = Place(
            session, self.what, frame.number, self.world_size, told, self.schedule, self._descriptor, places.entrance
        )


def turn_down(session: Session, frame: Frame, *, told: bool) -> None:
    """JOINED has come, and whoever asked has given up: the group shall not wait for a member that never calls.

    Args:
        session: with the broker.
        frame: that has come.
        told: whether the broker was told when whoever asked gave up.
    """
    discard(session.passage, decode_body(frame.body, Membership))
    if not told:
        session.put(Frame(Kind.LEAVE, lane=Lane.CONTROL, number=frame.number))
