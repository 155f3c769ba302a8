"""Giving every rank of a group the state of the one that has come furthest.

    all_gather   [step, bytes of the state] of every rank: all see alike whose state it is to be
    broadcast    that state, as one structure (docs/wire.md section 8)
    compare      with what the receiver has: everything has to fit before anything is changed
    fill         arrays in place, dicts and lists entry by entry

Two collectives, in the same order everywhere. When one of them fails, no rank has changed anything.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

import numpy as np

from broker.collectives.member import Member
from broker.errors import CollectiveError, InvalidValue, StateMismatchError
from broker.protocol.structures import decode_structure
from broker.protocol.tensors import Array, as_array
from broker.protocol.values import encode_nested
from clients.collectives import collective
from clients.collectives.collective import Prepared
from clients.connection.checks import whole_number

NO_STATE: Final = -1
"""The step of a rank that has no state."""


class Synced(NamedTuple):
    """What every rank has after `sync_state`.

    Attributes:
        step: of the state, the highest of all ranks.
        state: this rank's own dicts, lists and arrays, filled; what it did not have is new.
        rank: whose state it is.
    """

    step: int
    state: object
    rank: int


def sync_state(member: Member, state: object, step: int, timeout_s: float) -> Generator[Prepared, object, Synced]:
    """Yields the collectives to carry out one after the other, and is sent what each has given.

    Raises:
        InvalidValue: the step is no number from 0 on, or something in the state cannot be sent.
        CollectiveError: no rank has a state.
        StateMismatchError: what this rank has does not fit into what has come; it has changed nothing.
    """
    step = whole_number("step", step)
    if not 0 <= step < 1 << 63:
        raise InvalidValue("step", step, "must be from 0 upwards, and below 2**63")
    payload = b"" if state is None else encode_nested(state)
    claim = np.array([NO_STATE if state is None else step, len(payload)], np.int64)
    told = yield collective.all_gather(member, claim, timeout_s)
    assert isinstance(told, list)
    steps = [int(each[0]) for each in told]
    furthest = max(steps)
    if furthest == NO_STATE:
        raise CollectiveError(member.group, "no rank has a state to give: all passed None")
    position = steps.index(furthest)
    root = member.ranks[position]
    if root == member.rank:
        yield collective.broadcast(member, np.frombuffer(bytes(payload), np.uint8), root, timeout_s)
        return Synced(furthest, state, root)
    flat = np.empty(int(told[position][1]), np.uint8)
    yield collective.broadcast(member, flat, root, timeout_s)
    received = decode_structure(flat.data)
    if state is not None:
        problem = mismatch(state, received)
        if problem is not None:
            raise StateMismatchError(member.group, root, *problem)
    return Synced(furthest, fill(state, received), root)


def mismatch(own: object, received: object, place: str = "state") -> tuple[str, str, str] | None:
    """The first place where arrays of one's own would not be filled: the place, what is there, and what has come."""
    if isinstance(own, dict):
        for key, value in own.items():
            inner = f"{place}[{key!r}]"
            if not isinstance(received, dict) or key not in received:
                if not _has_arrays(value):
                    continue
                return inner, _words(value), "nothing"
            problem = mismatch(value, received[key], inner)
            if problem is not None:
                return problem
        return None
    if isinstance(own, (list, tuple)):
        if not isinstance(received, list) or len(received) != len(own):
            return (place, _words(own), _words(received)) if _has_arrays(own) else None
        problems = (
            mismatch(each, new, f"{place}[{at}]") for at, (each, new) in enumerate(zip(own, received, strict=True))
        )
        return next((problem for problem in problems if problem is not None), None)
    array = as_array(own)
    if array is None or isinstance(own, np.generic):
        return None
    fits = isinstance(received, np.ndarray) and received.shape == array.shape and _same_dtype(received, array)
    if fits and changeable(own):
        return None
    return place, _words(own) if changeable(own) else f"{_words(own)}, which cannot be changed,", _words(received)


def fill(own: object, received: object) -> object:
    """What has come, in the arrays, dicts and lists of one's own where there are such; `mismatch` has allowed it."""
    if isinstance(own, dict) and isinstance(received, dict):
        for key in [key for key in own if key not in received]:
            del own[key]
        for key, value in received.items():
            own[key] = fill(own.get(key), value)
        return own
    if isinstance(own, list) and isinstance(received, list):
        own[:] = [fill(own[at] if at < len(own) else None, value) for at, value in enumerate(received)]
        return own
    if isinstance(own, tuple) and isinstance(received, list):
        return tuple(fill(own[at] if at < len(own) else None, value) for at, value in enumerate(received))
    array = None if isinstance(own, np.generic) else as_array(own)
    if array is None or not isinstance(received, np.ndarray):
        return received
    array[...] = received
    return own


def changeable(value: object) -> bool:
    """Whether an array can be changed in place: it is not read-only, and lies in host memory as it is."""
    array, again = as_array(value), as_array(value)
    assert array is not None
    assert again is not None
    return array.flags.writeable and (not array.size or np.may_share_memory(array, again))


def arrays_in(state: object) -> Iterator[object]:
    """All arrays of a state, numpy's and others."""
    if isinstance(state, dict):
        for value in state.values():
            yield from arrays_in(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from arrays_in(value)
    elif not isinstance(state, np.generic) and as_array(state) is not None:
        yield state


def snapshot(state: object) -> object:
    """A copy of a state that shares no array, dict or list with it."""
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [snapshot(value) for value in state]
    array = None if isinstance(state, np.generic) else as_array(state)
    return state if array is None else array.copy()


def _has_arrays(value: object) -> bool:
    return next(arrays_in(value), None) is not None


def _same_dtype(one: Array, other: Array) -> bool:
    return one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")


def _words(value: object) -> str:
    array = None if isinstance(value, (dict, list, tuple)) else as_array(value)
    if array is not None:
        return f"{array.dtype}{list(array.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (dict, list, tuple)) else type(value).__name__
