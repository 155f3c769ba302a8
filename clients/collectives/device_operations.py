"""Collectives of device arrays whose ranks share the memory of their devices: reduced there, without the host.

    all_reduce       each rank reduces its share of what all have contributed; then each copies all shares out
    reduce_scatter   the same, but the share is what the caller gets
    all_gather       each rank copies all contributions to arrays of its own; then they are the result
    broadcast        the same with the root's

Each of these says what is to be carried out, or None: then the call goes the usual way, through the host (staging.py).
So does whatever is unusual in it, such as an array that is read-only or an `out` that does not fit: the usual way says
what is wrong with it, if something is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from broker import devices
from broker.collectives.claims import ReduceOp
from broker.devices import Device, reducing
from broker.devices.memory import DeviceMemory
from broker.devices.windows import DeviceArray, DeviceWindow, Piece, device_of, new_array, put, view_of, working
from broker.limits_devices import DEVICE_HEADER_BYTES
from broker.protocol.tensors import BFLOAT16, describe
from clients.collectives import collective, collective_lists
from clients.collectives.collective import Prepared
from clients.collectives.device_windows import Agreements, OnDevice, Steps, carry_out, window_bytes
from clients.collectives.flats import parts_of
from clients.collectives.staging import note_detour
from clients.connection.checks import whole_number

if TYPE_CHECKING:
    from clients.collectives.boards import Board
    from clients.collectives.membership import Place

_ALIGNED: Final = 256
"""Where arrays of a dtype and shares begin, as devices like it."""
_OPS: Final = frozenset(ReduceOp)


class _Arrays(NamedTuple):
    """Device arrays of the caller, all on one device.

    Attributes:
        views: over their memory.
        dtypes: of each, as the wire names them.
        device: where they are.
        names: of a dict's, in their order.
    """

    views: list[DeviceArray]
    dtypes: list[str]
    device: Device
    names: tuple[str, ...]

    @property
    def is_one(self) -> bool:
        """Whether it may be one array by itself, whose dtype the library has."""
        return len(self.views) == 1 and not self.names and self.dtypes[0] != BFLOAT16

    @property
    def words(self) -> str:
        """For the claim."""
        if len(self.views) == 1 and not self.names:
            return f"{self.dtypes[0]} {self.views[0].shape}"
        return parts_of(tuple(zip(self.dtypes, (view.shape for view in self.views), strict=True)), self.names)

    def fits(self, other: _Arrays) -> bool:
        """Whether each array is like that of the other, and on its device."""
        return self.words == other.words and self.device == other.device


class _Part(NamedTuple):
    """The arrays of one dtype, as they lie end to end in each rank's memory.

    Attributes:
        dtype: as the wire names it.
        chosen: which of the arrays.
        offset: where they begin.
        elements: of all.
        item_bytes: of an element.
        share: so many elements each rank reduces, but for the last ones.
        result: where each rank has its share of the result, from where results begin in a window.
    """

    dtype: str
    chosen: list[int]
    offset: int
    elements: int
    item_bytes: int
    share: int
    result: int

    @property
    def end(self) -> int:
        """Of the elements."""
        return _aligned(self.offset + self.elements * self.item_bytes)

    @property
    def results_end(self) -> int:
        """Of the share."""
        return _aligned(self.result + self.share * self.item_bytes)

    def share_of(self, position: int) -> tuple[int, int]:
        """The first element of a position's share, and how many it has."""
        first = min(self.elements, position * self.share)
        return first, min(self.share, self.elements - first)

    def pieces(self, results: int, start: int, stop: int) -> list[Piece]:
        """Where the bytes of the result are, from `start` to before `stop`, if results begin at `results`."""
        found, length = [], self.share * self.item_bytes
        while start < stop:
            position, within = divmod(start, length)
            size = min(stop - start, length - within)
            found.append(Piece(position, results + self.result + within, size))
            start += size
        return found


def all_reduce(place: Place, value: object, op: str, timeout_s: float, out: object = None) -> Steps | None:
    """Reduces the arrays of all ranks."""
    board, given = _given(place, value)
    into = given if out is None else _given(place, out)[1]
    if board is None or given is None or into is None or not _reducible(op, given):
        return None
    if not into.fits(given) or not _writable(value if out is None else out):
        return None
    parts = _parts(given, len(board.ranks))

    def work(window: DeviceWindow) -> Callable[[], object]:
        with working(window.device):
            for part in parts:
                first, count = part.share_of(window.position)
                room = window.at(window.results + part.result, count * part.item_bytes)
                window.reduce(op, part.dtype, part.offset + first * part.item_bytes, count, room)
        return lambda: finish(window)

    def finish(window: DeviceWindow) -> object:
        with working(window.device):
            for part in parts:
                start = 0
                for view in [into.views[index] for index in part.chosen]:
                    window.fill(view, part.pieces(window.results, start, start + view.nbytes))
                    start += view.nbytes
        return value if out is None else out

    prepare = collective_lists.all_reduce if collective_lists.is_list(value) else collective.all_reduce
    staged = _staged(prepare, place, value, op, timeout_s, out)
    return _steps(place, board, f"all_reduce {op}", given, parts, work, staged, timeout_s, op=op)


def reduce_scatter(place: Place, value: object, op: str, timeout_s: float, out: object = None) -> Steps | None:
    """This rank's share, along the first axis, of the reduced array."""
    board, given = _given(place, value)
    into = given if out is None else _given(place, out)[1]
    if board is None or given is None or into is None or not given.is_one or collective_lists.is_list(value):
        return None
    if not _reducible(op, given):
        return None
    # What the caller has is for the members of which it knows.
    place.member.raise_change()
    count = len(board.ranks)
    view, (part,) = given.views[0], _parts(given)
    if not view.shape or view.shape[0] % count:
        return None
    shape = view.shape[0] // count, *view.shape[1:]
    if out is not None and not _is_room(out, into, given, [shape]):
        return None

    def work(window: DeviceWindow) -> Callable[[], object]:
        with working(window.device):
            share = new_array(shape, view.dtype)
            start = part.offset + window.position * share.nbytes
            window.reduce(op, part.dtype, start, part.elements // count, share)
        return lambda: share if out is None else _written(window, into.views, [share], out)

    staged = _staged(collective.reduce_scatter, place, value, op, timeout_s, out)
    return _steps(place, board, f"reduce_scatter {op}", given, [part], work, staged, timeout_s, op=op)


def all_gather(place: Place, value: object, timeout_s: float, out: object = None) -> Steps | None:
    """The arrays of all ranks; of lists of arrays the usual way."""
    board, given = _given(place, value)
    into = given if out is None else _given(place, out)[1]
    if board is None or given is None or into is None or not given.is_one or collective_lists.is_list(value):
        return None
    if out is not None:
        place.member.raise_change()
    view, count, (part,) = given.views[0], len(board.ranks), _parts(given)
    many = collective_lists.is_list(out)
    if out is not None and not _is_room(out, into, given, [view.shape] * count if many else [(count, *view.shape)]):
        return None

    def work(window: DeviceWindow) -> Callable[[], object]:
        with working(window.device):
            found = [new_array(view.shape, view.dtype) for _ in range(count)]
            for position, each in enumerate(found):
                window.fill(each, [Piece(position, part.offset, view.nbytes)])
        if out is None:
            return lambda: found
        targets = into.views if many else [into.views[0][position] for position in range(count)]
        return lambda: _written(window, targets, found, out)

    staged = _staged(collective.all_gather, place, value, timeout_s, out)
    return _steps(place, board, "all_gather", given, [part], work, staged, timeout_s)


def broadcast(place: Place, value: object, root: int, timeout_s: float, out: object = None) -> Steps | None:
    """Copies the root's arrays into every rank's."""
    root = whole_number("root", root)
    sends = place.member.rank == root
    returned = value if out is None else out
    board, given = _given(place, out if value is None else value)
    into = given if out is None else _given(place, out)[1]
    if board is None or given is None or into is None or root not in board.ranks or (sends and value is None):
        return None
    if not into.fits(given) or not (_writable(returned) or (sends and out is None)):
        return None
    parts = _parts(given)
    position = board.ranks.index(root)

    def work(window: DeviceWindow) -> Callable[[], object]:
        if sends and out is None:
            return lambda: value
        found: dict[int, DeviceArray] = {}
        with working(window.device):
            for part in parts:
                start = part.offset
                for index in part.chosen:
                    view = given.views[index]
                    found[index] = new_array(view.shape, view.dtype)
                    window.fill(found[index], [Piece(position, start, view.nbytes)])
                    start += view.nbytes
        return lambda: _written(window, into.views, [found[index] for index in range(len(found))], returned)

    listed = collective_lists.is_list(value) or collective_lists.is_list(out)
    prepare = collective_lists.broadcast if listed else collective.broadcast
    staged = _staged(prepare, place, value, root, timeout_s, out)
    return _steps(place, board, f"broadcast from rank {root}", given, parts, work, staged, timeout_s, contributes=sends)


def _given(place: Place, value: object) -> tuple[Board | None, _Arrays | None]:
    """The board and the arrays of an argument; None if there is no way on the device for them.

    Raises:
        InvalidValue: one cannot be read.
    """
    board = place.device_board
    return board, None if board is None else _arrays(value)


def _arrays(value: object) -> _Arrays | None:
    values = _values(value)
    if not values or not all(map(devices.is_device_array, values)):
        return None
    views = [view_of(each) for each in values]
    device = device_of(views[0])
    if any(device_of(view) != device for view in views) or not any(view.nbytes for view in views):
        return None
    dtypes = [
        BFLOAT16 if str(getattr(each, "dtype", "")) == "torch.bfloat16" else describe(np.empty(0, view.dtype)).dtype
        for each, view in zip(values, views, strict=True)
    ]
    return _Arrays(views, dtypes, device, tuple(map(str, value)) if isinstance(value, dict) else ())


def _reducible(op: str, given: _Arrays) -> bool:
    return isinstance(op, str) and op in _OPS and all(reducing.reducible(op, dtype) for dtype in given.dtypes)


def _values(value: object) -> Sequence[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, (list, tuple)) else [value]


def _writable(value: object) -> bool:
    """Whether all arrays may be written to, and each is there once."""
    values = _values(value)
    return len(set(map(id, values))) == len(values) and not any(map(devices.is_read_only, values))


def _is_room(out: object, into: _Arrays, given: _Arrays, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether results of these shapes, and of the dtype of what is given, fit into an `out`."""
    fits = [view.shape for view in into.views] == list(shapes) and set(into.dtypes) == set(given.dtypes)
    return fits and into.device == given.device and not into.names and _writable(out)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNED) * _ALIGNED


def _parts(given: _Arrays, shares: int = 0) -> list[_Part]:
    """How arrays lie in each rank's memory, with room for one of so many shares of the result behind each dtype's."""
    parts: list[_Part] = []
    for dtype in dict.fromkeys(given.dtypes):
        chosen = [index for index, each in enumerate(given.dtypes) if each == dtype]
        elements, item_bytes = sum(given.views[index].size for index in chosen), given.views[chosen[0]].dtype.itemsize
        offset = parts[-1].end if parts else DEVICE_HEADER_BYTES
        share = _aligned(-(-elements // shares)) if shares else 0
        result = parts[-1].results_end if parts else 0
        parts.append(_Part(dtype, chosen, offset, elements, item_bytes, share, result))
    return parts


def _steps(
    place: Place,
    board: Board,
    what: str,
    given: _Arrays,
    parts: Sequence[_Part],
    work: Callable[[DeviceWindow], Callable[[], object]],
    staged: Steps,
    timeout_s: float,
    *,
    op: str | None = None,
    contributes: bool = True,
) -> Steps | None:
    """What is to be carried out, if the memory that it takes may be had; see OnDevice.

    Args:
        place: of this rank.
        board: of the generation for which it was planned.
        what: is done, in words.
        given: this rank's arrays, or those that are like what it gets.
        parts: how they lie in each rank's memory.
        work: see OnDevice.
        staged: see OnDevice.
        timeout_s: how long the ranks may take to arrive.
        op: how they are reduced, if they are.
        contributes: whether this rank's arrays are read.
    """
    put_bytes = parts[-1].end - DEVICE_HEADER_BYTES
    size_bytes = window_bytes(put_bytes, len(board.ranks))
    if size_bytes > place.device_bytes:
        devices.warn_of_detour("device_memory_bytes is too small for a collective", f"{what} takes {size_bytes} bytes")
        return None

    def lay(memory: DeviceMemory) -> None:
        with working(given.device):
            for part in parts:
                if op is not None:
                    reducing.compile_kernel(op, part.dtype)
                if contributes:
                    put(memory, part.offset, [given.views[index] for index in part.chosen])

    agreements = Agreements(place, board, f"{what} {given.words} on devices", timeout_s)
    return carry_out(agreements, board.device_windows, OnDevice(given.device, put_bytes, lay, work, staged))


def _written(window: DeviceWindow, targets: Sequence[DeviceArray], found: Sequence[DeviceArray], out: object) -> object:
    """Writes results to where the caller wants them."""
    with working(window.device):
        for target, each in zip(targets, found, strict=True):
            target[...] = each
    return out


def _staged(prepare: Callable[..., object], place: Place, *arguments: object) -> Steps:
    """The same through the host."""
    prepared = prepare(place.member, *arguments)
    if isinstance(prepared, collective_lists.PreparedList):
        note_detour(prepared, prepare.__name__, place.device_bytes)
        results = []
        for each in prepared.operations:
            results.append((yield each))
        return prepared.complete(results)
    assert isinstance(prepared, Prepared)
    return (yield prepared)
