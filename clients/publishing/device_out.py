"""Publishing an array of a device from memory of that device, where the readers of its topic can have it there.

Each message is answered by the broker: it takes it, or the bytes are to be sent after all. So the call that publishes
waits for that answer, and whatever is published behind it comes behind it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from broker import devices
from broker.devices import Device
from broker.errors import ConnectionClosed, InvalidValue, TimeoutError
from broker.limits import CONTROL_QUEUE_BYTES_MAX
from broker.limits_devices import DEVICE_ANSWER_S, DEVICE_PATIENCE_S
from broker.protocol.codes import NotInPlace
from broker.protocol.frames import Content, Flag, Frame, Kind, Lane
from broker.protocol.places import charge
from broker.protocol.tensors import describe
from clients.connection import operations
from clients.connection.core import Core
from clients.connection.driver import Driver as BlockingDriver
from clients.connection.operations import Deadline, Driver
from clients.connection.options import outbound
from clients.connection.signals import Pending
from clients.publishing.device_arenas import DeviceArenas, DeviceBlock
from clients.publishing.outbound import Outbound
from clients.publishing.outgoing_topic import OutgoingTopic

AS_BYTES: Final = 0
"""What publishing returns when the array is to be sent as bytes. Sequences begin with 1."""
_IN_DOUBT: Final = -1
"""What it returns of a message whose connection was lost before the answer."""


class Prepared(NamedTuple):
    """A message whose array may be published in place."""

    arenas: DeviceArenas
    value: object
    message: Outbound
    acknowledge: bool
    device: Device
    size_bytes: int
    deadline: Deadline

    def lend(self) -> DeviceBlock | None:
        """Memory for the array, if there is some free."""
        return self.arenas.lend(self.device, self.size_bytes)

    def lay(self, block: DeviceBlock | None) -> DeviceBlock | None:
        """Copies the array to the memory, if there was some."""
        if block is None:
            why = "no device memory to share is left: readers keep all of it, or device_memory_bytes is too small"
            devices.detour(why, self.arenas)
        else:
            block.arena.memory.write(block.offset, self.value)
        return block


def prepare(
    core: Core,
    topic: str,
    value: object,
    headers: Mapping[str, str] | None,
    lane: str | None,
    ack: str | None,
    priority: int,
    timeout_s: float,
) -> Prepared | None:
    """What is to be known of a message before its array is copied; None when it is to be sent as any other.

    Raises:
        InvalidValue: the topic or an option cannot be used.
    """
    arenas = core.devices
    if arenas is None or not arenas.suits(value):
        return None
    try:
        form = devices.form_of(value)
        encoded = int(Content.TENSOR), describe(form.like), b""
    except InvalidValue:
        # What can be staged after all, as a conjugate tensor of torch, is; the rest is refused there.
        devices.detour("an array of a kind that has no place in device memory", type(value).__name__)
        return None
    message, acknowledge = outbound(topic, value, headers, lane, ack, urgent=False, priority=priority, encoded=encoded)
    if message.flags or core.session is None:
        # One that is traced is shown to others, and without a connection nobody knows of places.
        return None
    if not arenas.is_due(topic):
        devices.detour()
        return None
    return Prepared(arenas, value, message, acknowledge, form.device, form.size_bytes, Deadline(timeout_s))


def publish_placed(driver: BlockingDriver, prepared: Prepared) -> int:
    """As `publish`, with the synchronous client: without its lock while the device works."""
    block = prepared.lay(prepared.lend() or driver.run(_room(driver, prepared)))
    return AS_BYTES if block is None else driver.run(_hand_over(driver, prepared, block))


async def publish(driver: Driver, prepared: Prepared) -> int:
    """Publishes an array of a device; see `Client.publish`.

    Returns:
        Its sequence, or another number that is not 0; AS_BYTES when it is to be sent as bytes.
    """
    block = prepared.lay(prepared.lend() or await _room(driver, prepared))
    return AS_BYTES if block is None else await _hand_over(driver, prepared, block)


async def _room(driver: Driver, prepared: Prepared) -> DeviceBlock | None:
    """Waits a moment for a block to come back, if all are in use; None when none does."""
    arenas, deadline = prepared.arenas, Deadline(DEVICE_PATIENCE_S)
    driver.read_arrived()
    while arenas.may_come_back(prepared.device, prepared.size_bytes):
        arenas.came_back.clear()
        block = prepared.lend()
        if block is not None:
            return block
        try:
            await driver.wait(arenas.came_back, deadline.remaining_s, "device memory to come back")
        except TimeoutError:
            return None
    return None


async def _hand_over(driver: Driver, prepared: Prepared, block: DeviceBlock) -> int:
    """Publishes what lies in a block; see `publish`."""
    core, arenas, message, deadline = driver.core, prepared.arenas, prepared.message, prepared.deadline
    session = core.session
    if session is None or core.devices is not arenas or block.arena.gone:
        return AS_BYTES
    # Before its readers are told of the memory.
    topic = core.outgoing.topics.get(message.topic) or core.outgoing.topic(message.topic)
    answered = arenas.announce(block.arena, session, message.topic)
    if not answered.ready:
        try:
            await driver.wait(answered, DEVICE_ANSWER_S, "readers to map device memory")
        except TimeoutError:
            arenas.leave(block.arena)
            return _refused(arenas, message.topic, "a reader does not answer whether it can map the memory")
    lane = await _may_send(driver, topic, prepared)
    place = arenas.share(block) if core.session is session else None
    if place is None:
        return AS_BYTES
    pending = Pending(f"the broker to accept a message on {message.topic!r}")
    frame = Frame(
        Kind.PUBLISH, Flag.SHARED | Flag.ACKNOWLEDGE, lane, message.content,
        number=topic.number, target=core.pending(pending), count=message.priority, total_bytes=prepared.size_bytes,
        time_ns=time.time_ns(), body=message.body(core.session_number), payload=place,
    )  # fmt: skip
    core.outgoing.publish_small(topic, frame, charge(prepared.size_bytes))
    driver.flush()
    core.outgoing.has_left(time.monotonic_ns())
    try:
        sequence = await operations.answer(driver, pending, deadline)
    except NotInPlace as error:
        # Its traceback has this frame, and so the block: nobody is to keep it, as what is in this frame would.
        pending.error = None
        if error.is_new:
            devices.detour("a reader is new, and has only now been told of the memory", str(error))
            return AS_BYTES
        return _refused(arenas, message.topic, str(error))
    except ConnectionClosed:
        if prepared.acknowledge:
            raise
        # As any message that had left when the connection was lost.
        return _IN_DOUBT
    arenas.taken()
    return sequence


def _refused(arenas: DeviceArenas, topic: str, why: str) -> int:
    devices.detour("not everybody can have a topic's arrays in device memory", f"{topic}: {why}")
    arenas.put_off(topic)
    return AS_BYTES


async def _may_send(driver: Driver, topic: OutgoingTopic, prepared: Prepared) -> int:
    """Waits until a message may leave; returns the lane in which.

    Raises:
        LimitExceeded: it is longer than the topic's policy allows, or the broker has refused an earlier one for that.
        PermissionDenied: this client may not publish to the topic.
        TimeoutError: there was no credit in time.
    """
    core, message = driver.core, prepared.message
    while True:
        if topic.special:
            topic.check(prepared.size_bytes, requests=False)
        lane = topic.lane if message.lane is None else message.lane
        signal = topic.credit
        if lane == Lane.CONTROL:
            if core.session is None or core.session.outbox.control_bytes <= CONTROL_QUEUE_BYTES_MAX:
                return lane
            signal = core.outgoing.link_room
        elif core.session is None or (topic.credit_messages > 0 and topic.credit_bytes > 0):
            return lane
        signal.clear()
        what = f"room on topic {message.topic!r}: a subscriber with overflow='block' does not keep up, or the broker"
        await operations.wait_for(driver, signal, prepared.deadline, what)
