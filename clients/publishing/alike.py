"""The shortest way of an array that is like the one before it on its topic, in the synchronous client.

Where it lies in shared memory, and its readers take messages from the topic's line (line_out.py), nothing has to be
said of it but where. That is what goes on over and over again in training, in caches that the arrays themselves have
emptied: what counts is how little is touched on the way. What is not as usual goes the other ways, from its start.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from broker.clock import wall_ns
from broker.errors import InvalidValue
from broker.protocol.bodies import MessageBody, encode_body
from broker.protocol.frames import Content
from broker.protocol.places import charge, packed_place
from broker.protocol.tensors import DTYPES, describe
from clients.connection.driver import Driver
from clients.publishing.blocks import block_of
from clients.publishing.sharing import make_room

_TENSOR: Final = int(Content.TENSOR)
_DEFAULT_NAME: Final = "default"
_COPIED: Final = frozenset(DTYPES.values())


class Alike:
    """What is said of arrays of one dtype and shape, in C order.

    Attributes:
        copies: whether their bytes can be had from Python's buffers.
        size_bytes: of each.
        charge: what each takes of its topic's credit, besides the body.
        body: of its frame.
    """

    __slots__ = ("_dtype", "_shape", "body", "charge", "copies", "size_bytes")

    def __init__(self, array: npt.NDArray[np.generic]) -> None:
        """Raises:
        InvalidValue: such arrays cannot be sent.
        """
        self._dtype = array.dtype
        self._shape = array.shape
        self.body = encode_body(MessageBody(None, describe(array)))
        self.size_bytes = array.nbytes
        self.copies = array.dtype in _COPIED
        self.charge = charge(array.nbytes)

    def fits(self, array: npt.NDArray[np.generic]) -> bool:
        """Whether an array is like that."""
        return array.dtype is self._dtype and array.shape == self._shape and array.flags.c_contiguous


def publish_alike(driver: Driver, topic_name: str, lane: str | None, array: npt.NDArray[np.generic]) -> bool:
    """Publishes an array as it lies in shared memory, if nothing stands in its way; says whether it has.

    Args:
        driver: of the client.
        topic_name: as the application has given it.
        lane: in which it goes, as the application has given it.
        array: that was lent (`Client.empty`), or any other one.
    """
    core = driver.core
    outgoing, arenas = core.outgoing, core.arenas
    topic = outgoing.last_sent
    if topic is None or topic.name is not topic_name:
        topic = outgoing.topics.get(topic_name) if type(topic_name) is str else None
    if topic is None or topic.line is None:
        return False
    if lane is not None and (type(lane) is not str or lane != _DEFAULT_NAME):
        return False
    alike = topic.alike
    if alike is None or not alike.fits(array):
        if not arenas.suits(array.nbytes):
            return False
        alike = topic.alike = _like(array)
    if alike is None or not arenas.suits(alike.size_bytes):
        return False
    block = arenas.whole(array, alike.size_bytes)
    given = block is not None
    if block is None:
        # A view of an array that was lent may be given away, which the long way finds out. And what cannot be written
        # to the line, it would copy once more.
        base = array.base
        if type(base) is np.ndarray and block_of(base) is not None:
            return False
        if not alike.copies or not outgoing.can_place(topic, alike.size_bytes):
            return False
        make_room(driver, alike.size_bytes)
        block = arenas.filled(array, alike.size_bytes)
        if block is None:
            return False
    driver.lock.acquire()
    try:
        if outgoing.is_low(topic):
            # To read it costs less than to have the broker, which has given some, look once more.
            driver.read_arrived()
        if not outgoing.can_place(topic, alike.size_bytes) or not arenas.can_share(block):
            return False
        assert topic.line is not None
        name: int = block.arena.name
        if name not in topic.line.arenas:
            return False
        loan = arenas.open_loan(block)
        if given:
            block.give_away(array)
        place = packed_place(name, loan, block.offset)
        if not outgoing.publish_place(
            topic, 0, _TENSOR, 0, alike.body, place, alike.size_bytes, alike.charge, wall_ns()
        ):
            arenas.cancel_loan(loan)
            return False
        driver.flush()
        driver.publishes()
    finally:
        driver.lock.release()
    return True


def _like(array: npt.NDArray[np.generic]) -> Alike | None:
    """What is said of arrays like this one; None where they go another way."""
    if not array.flags.c_contiguous:
        return None
    try:
        return Alike(array)
    except InvalidValue:
        return None
