"""Collectives of device arrays: host memory stands for each of them while the operation runs.

    device array --copy--> stand-in --the operation, by any schedule--> stand-in --copy--> device array

What prepares an operation (collective.py) is given the stand-ins; what completes it gives each device array its
new elements, on the thread that waits for the result. So a failed operation changes no device array either, and one
copy is made in each direction, of what is read and of what is written. Nothing is reduced on a device; where ranks
share the memory of theirs, device_operations.py does that.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Final, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import numpy as np

from broker import devices
from broker.collectives.member import Member
from broker.devices import Device
from broker.errors import InvalidValue
from broker.protocol.tensors import Array, as_array

P = ParamSpec("P")
T = TypeVar("T")


class Use(NamedTuple):
    """What an operation does with the array that it is given."""

    read: bool
    written: bool


_BOTH: Final = Use(read=True, written=True)
"""Whoever does not write gives no result that stands for the array, so nothing is copied back."""
WRITTEN: Final = Use(read=False, written=True)
READ: Final = Use(read=True, written=False)


class _StandIn(NamedTuple):
    standing: object
    original: object
    written: bool


class _Staging:
    """The device arrays of one operation, and what stands for them.

    Attributes:
        device: of the first array: where new arrays are to be.
    """

    def __init__(self, given: tuple[object, ...]) -> None:
        self.device: Device | None = None
        self._given = given
        self._standing: dict[int, _StandIn] = {}
        """By the identity of what stands for it, which is kept with it."""
        self._by_original: dict[int, object] = {}

    def stand_in(self, value: object, use: Use) -> object:
        """What an operation gets for an argument: of one that is not read, memory without its elements.

        Raises:
            InvalidValue: some of several arrays are on devices and some are not, or cupy is missing or cannot read one.
        """
        if not devices.holds_device_array(value):
            return value
        known = self._by_original.get(id(value))
        if known is not None:
            return known
        standing: object
        if isinstance(value, dict):
            standing = {key: self._of_list(each, use) for key, each in value.items()}
        elif isinstance(value, (list, tuple)):
            standing = [self._of_list(each, use) for each in value]
        else:
            standing = self._of_array(value, use)
        self._standing[id(standing)] = _StandIn(standing, value, use.written)
        self._by_original[id(value)] = standing
        return standing

    def _of_list(self, value: object, use: Use) -> object:
        if not devices.is_device_array(value):
            raise InvalidValue("list of arrays", type(value).__name__, "has some on devices and some that are not")
        return self.stand_in(value, use)

    def _of_array(self, value: object, use: Use) -> Array:
        if self.device is None:
            self.device = devices.device_of(value)
        array = as_array(value) if use.read else devices.host_like(value)
        assert array is not None
        if devices.is_read_only(value):
            # Then whoever wants to write to it is told so, before anything has begun.
            array.flags.writeable = False
        return array

    def result(self, value: object) -> object:
        """What the caller gets for what an operation gives: device arrays, with their new elements."""
        found = self._standing.get(id(value))
        if found is not None:
            if isinstance(found.standing, dict):
                for each in found.standing.values():
                    self.result(each)
            elif isinstance(found.standing, list):
                for each in found.standing:
                    self.result(each)
            elif found.written:
                devices.write_back(found.original, cast(Array, found.standing))
            return found.original
        if self.device is None or any(value is each for each in self._given):
            return value
        return devices.to_device(value, self.device) if isinstance(value, (np.ndarray, list, dict)) else value

    def completed(self, prepared: object) -> object:
        """An operation that was prepared with stand-ins, or None where there is none."""
        if isinstance(prepared, tuple):
            return (*prepared[:-1], self.completed(prepared[-1]))
        if prepared is None:
            return None
        complete: Callable[[object], object] = prepared.complete  # type: ignore[attr-defined]
        return dataclasses.replace(  # type: ignore[type-var]
            prepared, complete=lambda result: self.result(complete(result)), staged=True
        )


class _Prepared(Protocol):
    @property
    def staged(self) -> bool: ...


def note_detour(prepared: _Prepared, what: str, device_bytes: int) -> None:
    """Counts an operation whose arrays are staged although their devices' memory may be shared."""
    if device_bytes and prepared.staged:
        devices.detour("a collective of device arrays goes through the host", what)


def broadcast_use(member: Member, value: object, root: int, *_: object, **__: object) -> Use:
    """Of a broadcast: the root's array is read, the others' are written."""
    return READ if member.rank == root else WRITTEN


def staged(use: Callable[..., Use] = lambda *_: _BOTH) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes what prepares an operation take device arrays too.

    It gives something with `complete`, which takes a result and returns what the caller gets; or a tuple with such a
    thing at its end; or None. Its argument `out`, if it has one, is only written to.

    Args:
        use: what the operation does with its other arrays, of the same arguments.
    """

    def decorate(prepare: Callable[P, T]) -> Callable[P, T]:
        names = list(inspect.signature(prepare).parameters)

        @wraps(prepare)
        def prepared(*arguments: P.args, **options: P.kwargs) -> T:
            given = (*arguments, *options.values())
            if not any(map(devices.holds_device_array, given)):
                return prepare(*arguments, **options)
            staging, usual = _Staging(given), use(*arguments, **options)
            uses = {name: WRITTEN if name == "out" else usual for name in names}
            standing = [staging.stand_in(each, uses[name]) for name, each in zip(names, arguments, strict=False)]
            named = {name: staging.stand_in(each, uses[name]) for name, each in options.items()}
            return cast(T, staging.completed(prepare(*standing, **named)))  # type: ignore[arg-type]

        return prepared

    return decorate
