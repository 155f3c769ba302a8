"""How the ranks of a generation agree on collectives of device arrays, and on the memory in which they take place.

    arrive    each rank has its contribution in its own memory, and says what it asks for, and of which memory it is
    (give, map: where that memory is new, they hand it to one another first: device_handover.py)
    ready     each rank has read what it needs of the others', and reduced its share of it

Then each rank writes its result to where the program wants it; nobody waits for that.

Each agreement is an all_gather of a few bytes on the generation's board. So ranks that ask for different things, come
too late, are killed or give up have the errors of every other collective; and what was agreed on is the same on all
ranks, also that something has failed. No result is written before all are ready, and no memory that others may still
read before they have arrived at the next operation. What a rank that was stopped and given up goes on to write is its
own memory, and nobody reads that before it has arrived again.

Results lie in a window where no contribution ever does, however long it is: a rank that has its result lays the next
contribution while others still read its share of the last one. They have read it when they arrive, and only then is the
next result written.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np

from broker import devices
from broker.devices import Device
from broker.devices.memory import DeviceMemory, names
from broker.devices.windows import DeviceWindow
from broker.errors import CollectiveAbortedError, CollectiveError, InvalidValue, LimitExceeded
from broker.limits_devices import DEVICE_HEADER_BYTES, DEVICE_NAME_BYTES_MAX, DEVICE_TOKEN_BYTES
from broker.protocol.tensors import Array
from clients.collectives import collective
from clients.collectives.collective import Prepared
from clients.collectives.device_handover import NAME_BYTES, Handover
from clients.publishing.arenas import rounded

if TYPE_CHECKING:
    from clients.collectives.boards import Board
    from clients.collectives.membership import Place

_ROW: Final = struct.Struct(f"<?QQ{DEVICE_TOKEN_BYTES}s{NAME_BYTES}s{DEVICE_NAME_BYTES_MAX}s")
_FINE: Final = 1
_NOT_FINE: Final = 2
_GAVE_UP: Final = 3
"""Not fine either, by the program's wish."""
_RESULTS_ALIGNED_BYTES: Final = 15 * 17 * 256
"""What it takes to align shares: of each of 15 dtypes up to 256 elements of 16 bytes, and 256 bytes."""

Steps = Generator[Prepared, object, object]
"""Collectives to carry out one after the other; it is sent what each has given, and returns what the caller gets."""


class Row(NamedTuple):
    """What a rank says as it arrives.

    Attributes:
        number: of the window in which its contribution lies; 0 for none that the others have.
        size_bytes: of memory that it offers in place of one; 0 when it can have none.
        token: how that memory begins.
        socket: where to hand it memory.
        device: whose memory it is.
    """

    number: int
    size_bytes: int
    token: bytes = b""
    socket: bytes = b""
    device: bytes = b""

    def packed(self) -> Array:
        """As it travels."""
        return np.frombuffer(_ROW.pack(True, *self), np.uint8)

    @classmethod
    def of(cls, packed: Array) -> Row:
        """As it has come."""
        _, number, size_bytes, token, socket, device = _ROW.unpack(packed.tobytes())
        return cls(number, size_bytes, token, socket, device.rstrip(b"\0"))


class OnDevice(NamedTuple):
    """A collective that can take place on the device.

    Attributes:
        device: where this rank's arrays are.
        size_bytes: of what each rank puts into its memory; the same on all.
        put: copies this rank's contribution there, and makes ready what may fail.
        work: does what is to be done while the others hold still, and returns what writes the result and returns what
            the caller gets.
        staged: the same through the host.
    """

    device: Device
    size_bytes: int
    put: Callable[[DeviceMemory], None]
    work: Callable[[DeviceWindow], Callable[[], object]]
    staged: Steps


class Agreements:
    """What the ranks of a generation say to one another in the course of one operation.

    Attributes:
        ranks: of all, ascending.
        position: of this one.
        interruption: what has interrupted this rank, where the others do not know of it: to be raised when it has
            said what they wait for.
        given_up: whether it is to fail, unless all are ready.
    """

    def __init__(self, place: Place, board: Board, words: str, timeout_s: float) -> None:
        """`words` are what all ranks have to agree on."""
        self.name = place.name
        self.words = words
        self.ranks = board.ranks
        self.interruption: BaseException | None = None
        self.given_up = False
        self.position = board.ranks.index(place.member.rank)
        self._member, self._board, self._timeout_s = place.member, board, timeout_s

    def gather(self, array: Array, step: str = "") -> Generator[Prepared, object, list[Array]]:
        """Waits for all ranks to come to a step; returns what each says, by position.

        What interrupts this rank is thrown in here. If all have come all the same, it goes on with them: see
        `interruption`. What an array has to say must not be 0 throughout.
        """
        if self._board.error is not None:
            self._member.raise_change()
            # Another thread was told of it.
            raise self._board.error.again()
        prepared = collective.all_gather(self._member, array, self._timeout_s)
        claim = msgspec.structs.replace(prepared.claim, stands_for=self.words + step)
        told = np.zeros((len(self.ranks), array.nbytes), np.uint8)
        try:
            yield dataclasses.replace(prepared, claim=claim, target=told.reshape(-1).data)
        except GeneratorExit:
            raise
        except BaseException as error:
            # An operation that fails leaves its arrays as they were.
            if told.any():
                self.interruption, self.given_up = error, True
            elif isinstance(error, CollectiveAbortedError):
                raise self.aborted(error.rank) from error
            else:
                raise
        return list(told)

    def agree(self, step: str, said: int) -> Generator[Prepared, object, dict[int, int]]:
        """Waits for all ranks to come to a step; returns what those say that are not fine."""
        told = yield from self.gather(np.array([said], np.uint8), f", {step}")
        return {rank: int(each[0]) for rank, each in zip(self.ranks, told, strict=True) if each[0] != _FINE}

    @property
    def state(self) -> int:
        """What this rank says when it has done its share, or cannot."""
        if self.interruption is None:
            return _FINE
        # A device's failure is an Exception; what stops a program or a task, as a rule, is none.
        return _NOT_FINE if isinstance(self.interruption, Exception) and not self.given_up else _GAVE_UP

    def aborted(self, rank: int) -> CollectiveAbortedError:
        """The error of an operation that the program of a rank gave up; of its agreements none has its number."""
        return CollectiveAbortedError(self.name, 0, rank)


class DeviceWindows:
    """The memory of devices that the members of a generation share, as one of them has it.

    Attributes:
        window: all ranks had it when it was last spoken of; None until there is one.
    """

    def __init__(self) -> None:
        self.window: DeviceWindow | None = None
        self._under_way: Agreements | None = None
        self._number = self._put_bytes = 0
        self._refused_bytes: int | None = None
        self._names: dict[Device, str] | None = None

    def name_of(self, device: Device) -> str | None:
        """What a device is called in all processes; None if its memory cannot be shared."""
        if self._names is None:
            self._names = {each: name for name, each in names().items()}
        return self._names.get(device)

    def number_for(self, device: Device, size_bytes: int) -> int:
        """The window that will do for an operation, or 0."""
        window = self.window
        fits = window is not None and window.device == device and self._put_bytes >= size_bytes
        return self._number if fits else 0

    def offer(self, device: Device, size_bytes: int, ranks: int) -> tuple[DeviceMemory, str]:
        """New memory for an operation, and the name of its device.

        Raises:
            LimitExceeded: there is none, or the ranks could not share as much before.
            InvalidValue: it cannot be shared.
        """
        name = self.name_of(device)
        if name is None:
            raise InvalidValue("memory of", device, "cannot be passed to other processes")
        if self._refused_bytes is not None and size_bytes >= self._refused_bytes:
            raise LimitExceeded("device memory", size_bytes, self._refused_bytes, "could not be shared before")
        return DeviceMemory.create(device, name, window_bytes(size_bytes, ranks)), name

    def begin(self, window: DeviceWindow, size_bytes: int) -> None:
        """All ranks have mapped what they have made for an operation.

        Results have a place that no contribution ever takes: a rank lays the next one, longer maybe, while
        others still read them.
        """
        self.window, self._put_bytes = window, rounded(size_bytes)
        window.results = DEVICE_HEADER_BYTES + self._put_bytes
        self._number += 1

    def refused(self, size_bytes: int, why: str) -> None:
        """The ranks cannot share memory for an operation. What they have they keep; for more it is not tried again."""
        known = size_bytes if self._refused_bytes is None else min(size_bytes, self._refused_bytes)
        self._refused_bytes = 0 if self.window is None else known
        devices.warn_of_detour("the ranks of a group cannot share the memory of their devices", why)

    @contextmanager
    def under_way(self, agreements: Agreements) -> Iterator[None]:
        """An operation is, until this ends; there is never more than one."""
        self._under_way = agreements
        try:
            yield
        finally:
            self._under_way = None

    def abort(self) -> bool:
        """Has the operation fail on all ranks that is under way, unless all are ready; says whether there was one."""
        agreements = self._under_way
        if agreements is not None:
            agreements.given_up = True
        return agreements is not None


def window_bytes(put_bytes: int, ranks: int) -> int:
    """What each rank takes of its device for an operation that puts so much there: with a share of the result."""
    put_bytes = rounded(put_bytes)
    return put_bytes + -(-put_bytes // ranks) + _RESULTS_ALIGNED_BYTES


def carry_out(agreements: Agreements, windows: DeviceWindows, operation: OnDevice) -> Steps:
    """The agreements of an operation, with what is done between them.

    Raises:
        CollectiveError: another rank's device has failed; no array was changed.
        CollectiveAbortedError: the program of a rank gave it up; likewise.
        InvalidValue: this rank's has.
    """
    with windows.under_way(agreements):
        return (yield from _carried_out(agreements, windows, operation))


def _carried_out(agreements: Agreements, windows: DeviceWindows, operation: OnDevice) -> Steps:
    window = yield from _arrive(agreements, windows, operation)
    if window is None:
        result = yield from operation.staged
        if agreements.interruption is not None:
            raise agreements.interruption
        return result
    try:
        if agreements.interruption is None:
            finish = operation.work(window)
            if agreements.given_up:
                raise agreements.aborted(agreements.ranks[agreements.position])
    except BaseException as error:  # noqa: BLE001
        # The others wait for this rank, and are told.
        agreements.interruption = error
    try:
        failed = yield from agreements.agree("ready", agreements.state)
    finally:
        # Also when the others have not waited.
        if agreements.interruption is not None:
            raise agreements.interruption
    for rank, said in failed.items():
        if said == _GAVE_UP:
            raise agreements.aborted(rank)
        raise CollectiveError(agreements.name, f"{agreements.words}: the device of rank {rank} has failed")
    return finish()


def _arrive(
    agreements: Agreements, windows: DeviceWindows, operation: OnDevice
) -> Generator[Prepared, object, DeviceWindow | None]:
    """Puts this rank's contribution in place, and waits for all; None when they cannot have a window."""
    number = windows.number_for(operation.device, operation.size_bytes)
    window = windows.window if number else None
    memory, handover, why = None if window is None else window.own, None, ""
    row = Row(number, 0)
    try:
        if memory is None:
            memory, name = windows.offer(operation.device, operation.size_bytes, len(agreements.ranks))
            handover = Handover(len(agreements.ranks))
            row = Row(0, memory.size_bytes, memory.token, handover.name, name.encode())
        operation.put(memory)
    except (InvalidValue, LimitExceeded, OSError) as error:
        row, why = Row(0, 0), str(error)
    try:
        told = yield from agreements.gather(row.packed())
        rows = [Row.of(each) for each in told]
        if window is not None and all(each.number == number for each in rows):
            return window
        window = None
        if memory is not None and handover is not None and all(each.size_bytes for each in rows):
            window = yield from _swap(agreements, memory, handover, rows)
    finally:
        if handover is not None:
            handover.close()
        if memory is not None:
            memory.close_descriptor()
    if window is None:
        windows.refused(operation.size_bytes, why or "another rank has none, or has it elsewhere")
    else:
        windows.begin(window, operation.size_bytes)
    return window


def _swap(
    agreements: Agreements, own: DeviceMemory, handover: Handover, rows: Sequence[Row]
) -> Generator[Prepared, object, DeviceWindow | None]:
    """Hands this rank's memory to all and maps what they have; None on all ranks when one of them cannot."""
    position = agreements.position
    others = {each.token: at for at, each in enumerate(rows) if at != position}
    given = False
    try:
        handover.give([each.socket for at, each in enumerate(rows) if at != position], own.token, own.descriptor)
        given = True
    except OSError as error:
        devices.warn_of_detour("a rank cannot be handed memory", error)
    if (yield from agreements.agree("memory given", _FINE if given else _NOT_FINE)):
        return None
    window, found = None, handover.take(others)
    try:
        window = _mapped(rows, own, position, found)
    except (InvalidValue, LimitExceeded) as error:
        devices.warn_of_detour("memory of another rank's device cannot be mapped", error)
    finally:
        for descriptor in found.values():
            os.close(descriptor)
    failed = yield from agreements.agree("memory mapped", _NOT_FINE if window is None else _FINE)
    return None if failed else window


def _mapped(rows: Sequence[Row], own: DeviceMemory, position: int, found: dict[int, int]) -> DeviceWindow | None:
    if len(found) != len(rows) - 1:
        return None
    memories = []
    for at, row in enumerate(rows):
        name = row.device.decode(errors="replace")
        other = None if at == position else DeviceMemory.adopt(found[at], name, row.size_bytes, row.token, own.device)
        memories.append(other or own)
    return DeviceWindow(memories, position)
