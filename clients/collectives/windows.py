"""Arrays in memory that the ranks of one host share, over which an all-reduce moves the fewest bytes (Group.empty).

Each rank makes memory for its own array and tells the others where its descriptor is; each opens the descriptors of all
and maps them, so that every rank can write to every array. If one of them cannot, all have ordinary arrays.

    rank 0   x | mapped | - - - |         an all_reduce(x, out=y) reads what it needs of every x, and writes
    rank 1   x | - - - -| mapped|         its share of the result to every y

After a failure a rank that was stopped may go on to write to the others' y. So whoever sees a failure exchanges its y
for memory of its own, under the array, which stays where it is (detach); it is an ordinary array from then on. Of
several operations at once that write to one array, all but the first go the ordinary way.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import stat
import weakref
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import numpy.typing as npt

from broker.collectives import shm
from broker.errors import InvalidValue, LimitExceeded
from broker.limits import SHARED_START_BYTES
from broker.protocol.tensors import Array, describe
from broker.transport.shared_memory import SharedMemory
from clients.collectives import collective
from clients.collectives.collective import Prepared
from clients.connection.checks import array_form

if TYPE_CHECKING:
    from clients.collectives.membership import Place

log = logging.getLogger(__name__)

SHARED_BYTES_MIN: Final = 32 << 10
"""Shorter arrays are ordinary ones: little is staged of them."""
FOUND_MAX: Final = 256
"""Arrays of which it is remembered where they lie."""
_NOTHING: Final = (0, 0, 0, 0)


class Mappings:
    """The memory of one array on each rank of a generation, as one of them has mapped it.

    Attributes:
        shared: whether the others can write to this rank's.
    """

    def __init__(self, memories: Sequence[SharedMemory], position: int) -> None:
        """`memories` are by position; the one at `position` is this rank's own."""
        self.memories = memories
        self.own = memories[position]
        self.shared = True

    def detach(self) -> None:
        """Nobody else writes to this rank's array any more, which stays as it is and where it is."""
        if self.shared:
            self.shared = False
            try:
                self.own.keep([(0, self.own.size_bytes)], writable=True)
            except LimitExceeded as error:
                log.error("window.kept bytes=%d cause=%s", self.own.size_bytes, error)  # noqa: TRY400
                raise


class Room:
    """What an array of `Group.empty` keeps alive."""

    def __init__(self, window: shm.Window, mappings: Mappings) -> None:
        self.window = window
        self.mappings = mappings


class Windows:
    """The arrays that the ranks of a generation share, as one of them has them."""

    def __init__(self) -> None:
        self._made = 0
        self._rooms: weakref.WeakValueDictionary[int, Room] = weakref.WeakValueDictionary()
        self._found: dict[int, tuple[weakref.ref[Array], weakref.ref[Room] | None]] = {}

    def add(self, mappings: Mappings, position: int) -> Room:
        """Memory that all have mapped; called in the same order on all ranks.

        Raises:
            InvalidValue: there have been too many.
        """
        self._made += 1
        addresses = [memory.address for memory in mappings.memories]
        window = shm.Window(self._made, addresses, position, mappings.own.size_bytes, mappings)
        room = self._rooms[self._made] = Room(window, mappings)
        return room

    def share(self, task: shm.Task, source: object, target: object) -> None:
        """Lets a task for whose arrays that is possible go without a stage."""
        if not self._rooms or not isinstance(source, np.ndarray) or not isinstance(target, np.ndarray):
            return
        if source.nbytes < SHARED_BYTES_MIN:
            return
        places = self._find(source), self._find(target)
        # One at a time writes to an array: were it to fail, the array could not be taken from those behind it.
        if places[0] is not None and places[1] is not None and not places[1].window.busy:
            task.share(places[0].window, places[1].window)

    def _find(self, array: Array) -> Room | None:
        found = self._found.get(id(array))
        if found is None or found[0]() is not array:
            found = self._look(array)
        room = None if found[1] is None else found[1]()
        return room if room is not None and room.mappings.shared else None

    def _look(self, array: Array) -> tuple[weakref.ref[Array], weakref.ref[Room] | None]:
        """Where an array lies, which is looked for once."""
        address = array.__array_interface__["data"][0]
        rooms = (weakref.ref(room) for room in list(self._rooms.values()) if room.mappings.own.holds(address))
        if len(self._found) >= FOUND_MAX:
            self._found.clear()
        found = self._found[id(array)] = weakref.ref(array), next(rooms, None)
        return found


def failed(task: shm.Task) -> None:
    """A task has failed, in which others may still write to this rank's target."""
    mappings = task.target_holder
    if isinstance(mappings, Mappings):
        mappings.detach()


def empty(
    place: Place, shape: int | Sequence[int], dtype: npt.DTypeLike, timeout_s: float
) -> Generator[Prepared, object, Array]:
    """Yields the collectives to carry out one after the other, and is sent what each has given; see Group.empty.

    Raises:
        InvalidValue: no tensor has such a shape or dtype.
    """
    lengths, kind, _ = array_form(shape, dtype)
    like = np.empty(lengths, kind)
    describe(like)
    memory = _offered(like.nbytes)
    claim = _NOTHING if memory is None else (os.getpid(), memory.descriptor, memory.identity, memory.size_bytes)
    told = yield _told(collective.all_gather(place.member, np.array(claim, np.int64), timeout_s), like)
    assert isinstance(told, list)
    windows, position = place.windows, place.member.position
    mapped = None if windows is None or memory is None else _map(told, memory, position)
    done = yield collective.all_reduce(place.member, np.array([mapped is not None], np.int64), "min", timeout_s, None)
    assert isinstance(done, np.ndarray)
    if memory is not None:
        memory.close_descriptor()
    if mapped is None or windows is None or not done[0]:
        return like
    room = windows.add(Mappings(mapped, position), position)
    view = memory.view(SHARED_START_BYTES, like.nbytes, room) if memory is not None else like.data
    return np.frombuffer(view, like.dtype).reshape(like.shape)


def _told(prepared: Prepared, like: Array) -> Prepared:
    """The same, in words by which ranks that ask for different arrays find that out."""
    words = f"empty {like.dtype}{list(like.shape)}"
    return dataclasses.replace(prepared, claim=msgspec.structs.replace(prepared.claim, parts=words))


def _offered(size_bytes: int) -> SharedMemory | None:
    if not shm.AVAILABLE or size_bytes < SHARED_BYTES_MIN:
        return None
    try:
        memory = SharedMemory.create(SHARED_START_BYTES + size_bytes, common=True)
        os.fchmod(memory.descriptor, stat.S_IRUSR | stat.S_IWUSR)
    except (InvalidValue, LimitExceeded, OSError) as error:
        log.warning("window.none bytes=%d cause=%s", size_bytes, error)
        return None
    return memory


def _map(told: Sequence[Array], own: SharedMemory, position: int) -> list[SharedMemory] | None:
    """The memory of all ranks; None if one cannot be had."""
    try:
        return [
            own if each == position else _open(*(int(number) for number in offer)) for each, offer in enumerate(told)
        ]
    except (InvalidValue, LimitExceeded, OSError) as error:
        log.warning("window.refused bytes=%d cause=%s", own.size_bytes, error)
        return None


def _open(process: int, descriptor: int, identity: int, size_bytes: int) -> SharedMemory:
    path = f"/proc/{process}/fd/{descriptor}"
    # Where processes are numbered otherwise it may be anything: nothing is opened that is not what was offered.
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_ino != identity:
        raise InvalidValue("shared memory", path, f"is not file {identity}: the ranks number processes differently")
    memory = SharedMemory.adopt(os.open(path, os.O_RDWR | os.O_CLOEXEC), size_bytes, common=True)
    if memory.identity != identity:
        raise InvalidValue("shared memory", path, f"is not file {identity} any more")
    memory.close_descriptor()
    return memory
