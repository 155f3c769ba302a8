"""How a client becomes a member of a group and how it leaves, written once for both kinds of client."""

from __future__ import annotations

from broker.errors import CollectiveError, ConnectionClosed, InvalidValue
from broker.limits_links import LINK_MEETING_S
from broker.protocol.bodies import Join, encode_body
from broker.protocol.frames import Frame, Kind, Lane
from broker.schedules import AUTO
from clients.collectives.collective import GRACE_S
from clients.collectives.membership import Place
from clients.collectives.places import PendingJoin
from clients.collectives.ways import Schedule
from clients.connection.checks import time_limit, whole_number
from clients.connection.core import Core
from clients.connection.operations import Deadline, Driver, answer, online
from clients.connection.signals import Pending

DECISION_S = LINK_MEETING_S + GRACE_S
"""The broker decides after LINK_MEETING_S; a client that has not heard even that by then raises itself."""


async def join(
    driver: Driver, group: str, world_size: int, rank: int | None, timeout_s: float, schedule: str = AUTO
) -> Place:
    """Becomes a member of a group; when this returns, the group has formed and it is decided how its operations go.

    However else this ends, the client is no member, and may join at once again.

    Raises:
        RankTimeoutError: the group did not form in time; missing_ranks are the ones that nobody holds.
        CollectiveError: the rank is taken, the world size differs, there can be no board, no links, ...
    """
    core, wanted = driver.core, Schedule.of(schedule)
    time_limit("timeout_s", timeout_s)
    deadline = Deadline(timeout_s + GRACE_S)
    await online(driver, deadline)
    core.places.joining += 1
    pending = PendingJoin(group, world_size, wanted, core.completions)
    try:
        reach = core.places.reach(wanted)
        body = encode_body(Join(group, world_size, rank, int(timeout_s * 1e9), wanted.board_version, reach))
        core.send(Frame(Kind.JOIN, lane=Lane.CONTROL, target=core.pending(pending), body=body))
        await answer(driver, pending, deadline)
        place = pending.place
        assert place is not None
        place.device_bytes = 0 if core.devices is None else core.devices.bytes_max
        await _linked(driver, place)
        if place.refused is not None:
            raise place.refused
    except BaseException:
        # Who was interrupted before it waited has told nobody.
        core.forget(pending)
        # The answer may have come in the moment in which whoever waits for it was interrupted.
        if pending.place is not None and core.session is not None:
            _depart(core, pending.place)
        driver.flush()
        raise
    finally:
        core.places.joining -= 1
        core.places.tidy()
    return place


async def decided(driver: Driver, place: Place) -> None:
    """Waits until it is known how the operations of the place's generation go.

    Raises:
        GenerationChangedError: the members have changed; whoever calls hears of it before they are linked.
        CollectiveError: the broker does not say it.
    """
    while not place.decided.ready:
        place.member.raise_change()
        await _decision(driver, place)


async def _linked(driver: Driver, place: Place) -> None:
    """As `decided`, of a place whose members may change until its owner has it."""
    while not place.decided.ready:
        await _decision(driver, place)


async def _decision(driver: Driver, place: Place) -> None:
    """Waits until a decision has come, or another generation."""
    try:
        await driver.wait(place.decided, DECISION_S, "the members to be linked")
    except TimeoutError as error:
        raise CollectiveError(place.name, "the broker does not say whether the members are linked") from error


async def leave(driver: Driver, place: Place, timeout_s: float | None) -> None:
    """Leaves a group; pending operations fail with ConnectionClosed."""
    pending = _depart(driver.core, place)
    if pending is not None:
        await answer(driver, pending, Deadline(timeout_s))


def _depart(core: Core, place: Place) -> Pending | None:
    """Leaves a group, in the lane in which a later JOIN is behind it; None when there is no place to be left."""
    if place.closed is not None:
        return None
    place.farewell()
    pending = core.ask(Kind.LEAVE, f"leave group {place.name!r}", number=place.number)
    place.close(ConnectionClosed(f"group {place.name!r} was left"))
    core.places.by_number.pop(place.number, None)
    core.places.tidy()
    return pending


async def finish(driver: Driver, place: Place, generation: int | None, timeout_s: float) -> None:
    """Tells the broker that the members of a generation, None for the present one, have finished; it has heard it then.

    Raises:
        InvalidValue: there was no such generation yet.
        BrokerError: the place is lost.
    """
    present = place.member.generation
    ended = present if generation is None else whole_number("generation", generation)
    if not 1 <= ended <= present:
        raise InvalidValue("generation", generation, f"must be from 1 to the present one, {present}")
    await _tell_finished(driver, place, ended, timeout_s)


async def reopen(driver: Driver, place: Place, timeout_s: float) -> None:
    """Tells the broker that the members go on after all; it has heard it then.

    Raises:
        BrokerError: the place is lost.
    """
    await _tell_finished(driver, place, 0, timeout_s)


async def _tell_finished(driver: Driver, place: Place, generation: int, timeout_s: float) -> None:
    if place.closed is not None:
        raise place.closed.again()
    pending = driver.core.ask(Kind.FINISHED, f"finish group {place.name!r}", number=place.number, sequence=generation)
    await answer(driver, pending, Deadline(timeout_s))
