"""An all_reduce in fewer bytes: encoded before it is sent, decoded when the result is there.

What is reduced is an array of another dtype, or a gathering of few numbers of many, and goes the way of any other
operation, by any schedule:

    float16, bfloat16   rounded to the short float; summed in float32 and rounded once more
    int8                blocks of 8-bit numbers (broker/collectives/blocks.py)
    top-k:0.01          the hundredth of largest magnitude, as pairs of index and float32; the others count as zero

What an array loses when it is encoded can be kept under a name, and be added to the next array of that name: error
feedback, without which small gradients never come through (Karimireddy and others 2019, "Error Feedback Fixes
SignSGD").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from broker.collectives import encoding
from broker.collectives.claims import INT8_BLOCKS, ITEM_BYTES, Claim, CollectiveKind, ReduceOp
from broker.collectives.member import Member
from broker.errors import InvalidValue, LimitExceeded
from broker.limits import FEEDBACK_NAMES_MAX
from clients.collectives.collective import Prepared, in_place, nanoseconds
from clients.collectives.staging import staged

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

NONE: Final = "none"
_TOP_K: Final = "top-k"
_FORMS: Final = "none, float16, bfloat16, int8, or top-k with a fraction such as top-k:0.01"
_INDICES_MAX: Final = 1 << 32


class Codec(Protocol):
    """How arrays are encoded."""

    @property
    def kind(self) -> CollectiveKind:
        """What carries the encoded array."""
        ...

    @property
    def dtype(self) -> str:
        """Of the encoded array."""
        ...

    def encode(self, array: Floats, carried: Floats | None, lost: Floats | None) -> Bytes:
        """The bytes that are sent for a flat array.

        Args:
            array: flat, at least one element.
            carried: as long: what is to be added to it.
            lost: as long: receives what the encoded array lacks; 0 where the array is not finite.
        """
        ...

    def decode(self, result: memoryview, array: Floats, op: ReduceOp, ranks: int) -> None:
        """Fills a flat array with the result."""
        ...


@dataclass(frozen=True, slots=True)
class _Shorter:
    """As an array of a dtype of fewer bytes, which is reduced as such."""

    dtype: str
    kind = CollectiveKind.ALL_REDUCE

    def encode(self, array: Floats, carried: Floats | None, lost: Floats | None) -> Bytes:
        return encoding.encode(self.dtype, array, carried, lost)

    def decode(self, result: memoryview, array: Floats, op: ReduceOp, ranks: int) -> None:
        encoding.decode(self.dtype, np.frombuffer(result, np.uint8), array)


@dataclass(frozen=True, slots=True)
class _TopK:
    """The result is the sum of all ranks' pairs, in the order of the ranks."""

    fraction: float
    kind = CollectiveKind.ALL_GATHER
    dtype = "uint32"

    def encode(self, array: Floats, carried: Floats | None, lost: Floats | None) -> Bytes:
        wanted = array if carried is None else array + carried
        chosen = _largest(wanted, max(1, math.ceil(self.fraction * wanted.size)))
        if lost is not None:
            np.copyto(lost, wanted)
            lost[chosen] = 0
        return np.concatenate([chosen, wanted[chosen].view(np.uint32)]).view(np.uint8)

    def decode(self, result: memoryview, array: Floats, op: ReduceOp, ranks: int) -> None:
        pairs = np.frombuffer(result, np.uint32).reshape(ranks, 2, -1)
        last = int(pairs[:, 0].max())
        if last >= array.size:
            raise InvalidValue("index", last, f"is beyond the array's {array.size} elements: a rank sent rubbish")
        array.fill(0)
        for chosen, bits in pairs:
            array[chosen] += bits.view(np.float32)
        if op is ReduceOp.MEAN:
            array /= np.float32(ranks)


def _largest(array: Floats, count: int) -> NDArray[np.uint32]:
    """The indices of so many of largest magnitude, ascending; of equal ones the first. NaN counts as the largest."""
    if count >= array.size:
        return np.arange(array.size, dtype=np.uint32)
    magnitudes = np.abs(array).view(np.uint32)
    least = np.partition(magnitudes, array.size - count)[array.size - count]
    above, equal = np.flatnonzero(magnitudes > least), np.flatnonzero(magnitudes == least)
    return np.sort(np.concatenate([above, equal[: count - above.size]])).astype(np.uint32)


_CODECS: Final[dict[str, Codec]] = {
    "float16": _Shorter("float16"),
    "bfloat16": _Shorter("bfloat16"),
    "int8": _Shorter(INT8_BLOCKS),
}


def codec(name: str) -> Codec | None:
    """The codec of a name; None for "none".

    Raises:
        InvalidValue: there is none of this name.
    """
    if name == NONE:
        return None
    if type(name) is str and name in _CODECS:
        return _CODECS[name]
    kind, _, fraction = name.partition(":") if type(name) is str else ("", "", "")
    try:
        share = float(fraction)
    except ValueError:
        share = math.nan
    if kind != _TOP_K or not 0 < share <= 1:
        raise InvalidValue("compression", name, f"is none of {_FORMS}")
    return _TopK(share)


class Feedback:
    """What arrays of a name have lost and not yet sent. Not for several threads at once."""

    def __init__(self) -> None:
        self._kept: dict[str, Floats] = {}
        self._spare: dict[str, Floats] = {}
        self._busy: set[str] = set()

    def begin(self, name: str, elements: int) -> tuple[Floats, Floats]:
        """What is to be added to an array, and where to write what it loses.

        `commit` or `abandon` has to follow before the name can be used again.

        Raises:
            InvalidValue: the array is not as long as the one before it, or that one is still on its way.
            LimitExceeded: there are too many names.
        """
        if type(name) is not str or not name:
            raise InvalidValue("feedback", name, "must be the tensor's name: a string that is not empty")
        if name in self._busy:
            raise InvalidValue("feedback", name, "belongs to an operation that is in progress; wait for it first")
        carried = self._kept.get(name)
        if carried is None:
            if len(self._kept) >= FEEDBACK_NAMES_MAX:
                problem = "give each tensor one name, the same in each step"
                raise LimitExceeded("feedback_names_max", len(self._kept), FEEDBACK_NAMES_MAX, problem)
            carried = self._kept[name] = np.zeros(elements, np.float32)
        if carried.size != elements:
            problem = (
                f"is of an array of {carried.size} elements, not of {elements}; give each tensor a name of its own"
            )
            raise InvalidValue("feedback", name, problem)
        lost = self._spare.pop(name, None)
        self._busy.add(name)
        return carried, np.empty(elements, np.float32) if lost is None else lost

    def commit(self, name: str, lost: Floats) -> None:
        """The array has been sent: what it has lost takes the place of what it had carried."""
        self._busy.discard(name)
        self._spare[name], self._kept[name] = self._kept[name], lost

    def abandon(self, name: str, lost: Floats) -> None:
        """The array has not been sent: what it had carried stays."""
        self._busy.discard(name)
        self._spare[name] = lost

    def __repr__(self) -> str:
        return f"<Feedback names={len(self._kept)} busy={len(self._busy)}>"


class Compression:
    """How the arrays of a group are compressed, and what they have lost."""

    def __init__(self, name: str) -> None:
        """`name` is of the codec of calls that name none.

        Raises:
            InvalidValue: there is none of this name.
        """
        self.applies = codec(name) is not None
        self._name = name
        self._kept = Feedback()

    def refuse(self, name: str | None, feedback: str | None) -> None:
        """Of an operation that goes as it is.

        Raises:
            InvalidValue: the application asks for more.
        """
        if feedback is not None or (name is not None and codec(name) is not None):
            raise InvalidValue("compression", name or self._name, "does not go with a quorum")

    @staged()
    def all_reduce(
        self,
        member: Member,
        value: object,
        op: str,
        timeout_s: float,
        out: object,
        name: str | None,
        feedback: str | None,
    ) -> Prepared | None:
        """As collective.all_reduce, in fewer bytes; None when the array goes as it is.

        Args:
            member: of the group.
            value: the array; float32 or float64.
            op: sum or mean.
            timeout_s: how long the ranks may take to arrive.
            out: what becomes the result; None is the array.
            name: of the codec; None is the group's.
            feedback: under which name the array's loss is kept; None is not at all. Nothing is lost without a codec.

        Raises:
            InvalidValue: the array, the op or the feedback's name does not go with it.
        """
        name = self._name if name is None else name
        how = codec(name)
        if how is None:
            return None
        if isinstance(value, (list, tuple, dict)):
            problem = f"is for one array; call it for each, or with compression={NONE!r}"
            raise InvalidValue("compression", name, problem)
        return all_reduce(member, self._kept, value, op, timeout_s, out, how, name, feedback)


class _Loss:
    """What becomes of an array's loss, once."""

    def __init__(self, kept: Feedback, name: str, lost: Floats) -> None:
        self._kept: Feedback | None = kept
        self._name = name
        self._lost = lost

    def commit(self) -> None:
        """The array has been sent."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.commit(self._name, self._lost)

    def abandon(self) -> None:
        """It has not."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.abandon(self._name, self._lost)


def all_reduce(
    member: Member, kept: Feedback, value: object, op: str, timeout_s: float, out: object, how: Codec, name: str,
    feedback: str | None,
) -> Prepared:  # fmt: skip
    """See Compression.all_reduce; `kept` is what the group's arrays have lost, `how` the codec of the name."""
    array, flat, into = in_place(value, out, "array for all_reduce")
    if flat.dtype not in (np.float32, np.float64):
        raise InvalidValue("array of", str(flat.dtype), f"compression {name!r} takes float32 and float64")
    if op not in (ReduceOp.SUM, ReduceOp.MEAN):
        raise InvalidValue("op", op, f"compression {name!r} goes with sum and mean")
    if flat.size >= _INDICES_MAX and how.kind is CollectiveKind.ALL_GATHER:
        raise InvalidValue("array of elements", flat.size, f"top-k takes fewer than {_INDICES_MAX}")
    encoded, loss = _encode(kept, flat.reshape(-1).astype(np.float32, copy=False), how, feedback)
    reduce_op, ranks = ReduceOp(op), len(member.ranks)

    def complete(result: memoryview) -> object:
        target = into.flat.reshape(-1)
        floats: Floats = target if target.dtype == np.float32 else np.empty(target.size, np.float32)  # type: ignore[assignment]
        if floats.size:
            how.decode(result, floats, reduce_op, ranks)
        if floats is not target:
            target[:] = floats
        if loss is not None:
            loss.commit()
        return into.complete(result)

    shape = flat.shape if how.dtype in ("float16", "bfloat16") else (encoded.nbytes // ITEM_BYTES[how.dtype],)
    claim = Claim(
        how.kind, reduce_op if how.kind is CollectiveKind.ALL_REDUCE else None, None, how.dtype, shape,
        nanoseconds(timeout_s), stands_for=f"{op} of {flat.dtype} {array.shape} as {name}",
    )  # fmt: skip
    target = encoded.data if how.kind is CollectiveKind.ALL_REDUCE else None
    abandon = _nothing if loss is None else loss.abandon
    return Prepared(claim, encoded.data, target, complete, scratch=True, abandon=abandon)


def _nothing() -> None:
    """There was nothing to keep."""


def _encode(kept: Feedback, floats: Floats, how: Codec, feedback: str | None) -> tuple[Bytes, _Loss | None]:
    """What is sent, and what is lost by that."""
    if not floats.size:
        return np.empty(0, np.uint8), None
    if feedback is None:
        return how.encode(floats, None, None), None
    carried, lost = kept.begin(feedback, floats.size)
    return how.encode(floats, carried, lost), _Loss(kept, feedback, lost)
