"""What a message holds, for a person who looks: a value cut to a length, a tensor as its range and histogram. Pure.

The cost of one is bounded, however large the message is: of a tensor at most SAMPLED_MAX elements are looked at, taken
evenly over all of it, out of the pieces in which it comes; of any other value at most DECODED_BYTES_MAX are decoded.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from broker.buffers import Buffer
from broker.errors import BrokerError, ProtocolError
from broker.protocol.frames import Content
from broker.protocol.tensors import BFLOAT16, DTYPES, TensorMeta
from broker.protocol.values import decode_value

SAMPLED_MAX: Final = 16_384
"""Elements of a tensor that are looked at: half a millisecond's work."""
BINS: Final = 32
DECODED_BYTES_MAX: Final = 64 * 1024
"""Longer values are told by their length."""
TEXT_MAX: Final = 2_000
"""Characters that are shown of a value."""
_ITEMS_MAX: Final = 64
"""Entries that are shown of each list and dict in a value."""

Floats = npt.NDArray[np.float64]


class TensorSample(msgspec.Struct, frozen=True):
    """What is told of a tensor; its numbers are of the elements that were looked at.

    Attributes:
        dtype: of an element. Of complex numbers, all that follows is of their magnitudes.
        shape: lengths of the axes.
        elements: how many it has.
        sampled: how many were looked at.
        not_finite: of these, NaN or infinite; all that follows is of the others.
        low: the least; null when there is none.
        high: the greatest.
        mean: the average.
        deviation: the standard deviation.
        counts: a histogram from `low` to `high`, in 32 steps of one width.
    """

    dtype: str
    shape: list[int]
    elements: int
    sampled: int
    not_finite: int = 0
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    deviation: float | None = None
    counts: list[int] = []


class Sampler:
    """Takes elements of a tensor, evenly over all of it, from its pieces in their order.

    Attributes:
        meta: what the bytes mean.
        received_bytes: of the pieces so far.
    """

    def __init__(self, meta: TensorMeta) -> None:
        """Begins with none.

        Raises:
            ProtocolError: no tensor can be so.
        """
        meta.check()
        self.meta = meta
        self.received_bytes = 0
        self._elements = meta.nbytes // meta.itemsize
        self._step = max(1, _ceiling(self._elements, SAMPLED_MAX))
        self._taken: list[Floats] = []

    def feed(self, piece: Buffer) -> None:
        """Takes what is wanted of the next piece. One that is split between two pieces is passed over."""
        start, itemsize = self.received_bytes, self.meta.itemsize
        self.received_bytes += len(piece)
        whole = _ceiling(start, itemsize)
        first = _ceiling(whole, self._step) * self._step
        offset = first * itemsize - start
        count = (len(piece) - offset) // itemsize
        if count > 0:
            flat = np.frombuffer(piece, _dtype(self.meta), count, offset)
            self._taken.append(_as_floats(self.meta, flat[:: self._step]))

    def sample(self) -> TensorSample:
        """What was found.

        Raises:
            ProtocolError: the pieces together are not as long as the tensor.
        """
        meta = self.meta
        if self.received_bytes != meta.nbytes:
            raise ProtocolError(
                f"tensor {meta.dtype}{list(meta.shape)} has {meta.nbytes} bytes, its payload {self.received_bytes}"
            )
        taken = np.concatenate(self._taken) if self._taken else np.empty(0)
        finite = taken[np.isfinite(taken)]
        shape, odd = list(meta.shape), len(taken) - len(finite)
        if not finite.size:
            return TensorSample(meta.dtype, shape, self._elements, len(taken), odd)
        low, high = float(finite.min()), float(finite.max())
        # Of numbers near the greatest that there are, sums are infinite; they are shown as unknown.
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = float(finite.mean()), float(finite.std())
        return TensorSample(
            meta.dtype,
            shape,
            self._elements,
            len(taken),
            odd,
            low,
            high,
            mean,
            deviation,
            _histogram(finite, low, high),
        )


def _ceiling(number: int, step: int) -> int:
    """How many steps reach a number."""
    return -(-number // step)


def _dtype(meta: TensorMeta) -> np.dtype[np.generic]:
    if meta.dtype == BFLOAT16:
        return np.dtype("<u2")
    return DTYPES[meta.dtype].newbyteorder(">" if meta.byte_order == ">" else "<")


def _as_floats(meta: TensorMeta, elements: npt.NDArray[np.generic]) -> Floats:
    """A copy: the piece's memory is not kept."""
    if meta.dtype == BFLOAT16:
        # The upper half of a float32.
        upper: npt.NDArray[np.uint32] = elements.astype(np.uint32) << np.uint32(16)
        whole: npt.NDArray[np.float32] = upper.view(np.float32)
        floats: Floats = whole.astype(np.float64)
        return floats
    if elements.dtype.kind == "c":
        with np.errstate(over="ignore", invalid="ignore"):
            magnitudes: Floats = np.abs(elements).astype(np.float64)
            return magnitudes
    return elements.astype(np.float64)


def _histogram(finite: Floats, low: float, high: float) -> list[int]:
    if low == high:
        return [len(finite)]
    # Halves, because the difference of two floats may be more than a float can be.
    where = (finite / 2 - low / 2) / (high / 2 - low / 2) if high / 2 - low / 2 > 0 else np.zeros_like(finite)
    steps = np.clip((where * BINS).astype(np.int64), 0, BINS - 1)
    return [int(count) for count in np.bincount(steps, minlength=BINS)]


def text_of(content: int, payload: Buffer) -> str:
    """A value that is no tensor, as text of a bounded length."""
    if content == Content.TENSOR:
        return f"a tensor of {len(payload)} bytes"
    if content == Content.BYTES:
        return _bytes_text(bytes(payload[:TEXT_MAX]), len(payload))
    if len(payload) > DECODED_BYTES_MAX:
        return f"{'arrays' if content == Content.STRUCTURE else 'a value'} of {len(payload)} bytes"
    try:
        value = _shown(decode_value(content, None, payload), 8)
        return value if isinstance(value, str) else shortened(msgspec.json.encode(value).decode())
    except (BrokerError, ValueError, TypeError, RecursionError) as error:
        return shortened(f"a value that cannot be read: {error}")


def shortened(text: str) -> str:
    """Text of at most TEXT_MAX characters."""
    return text if len(text) <= TEXT_MAX else text[: TEXT_MAX - 4] + " ..."


def _bytes_text(head: bytes, size: int) -> str:
    try:
        text = head.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or not all(letter.isprintable() or letter in "\n\t" for letter in text):
        text = head[:64].hex(" ")
    return text if size <= TEXT_MAX else f"{text[: TEXT_MAX - 40]} ... of {size} bytes"


def _shown(value: object, depth: int) -> object:
    """The value with 64 entries of each container, and words in place of what JSON does not have."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name}{list(value.shape)}"
    if isinstance(value, bytes):
        return _bytes_text(value[:TEXT_MAX], len(value))
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, (list, tuple, dict)) and not depth:
        return f"{len(value)} entries"
    if isinstance(value, dict):
        entries = list(value.items())[:_ITEMS_MAX]
        shown = {shortened(str(key)): _shown(entry, depth - 1) for key, entry in entries}
        return shown if len(value) <= _ITEMS_MAX else {**shown, "...": f"{len(value)} entries"}
    if isinstance(value, (list, tuple)):
        listed = [_shown(entry, depth - 1) for entry in value[:_ITEMS_MAX]]
        return listed if len(value) <= _ITEMS_MAX else [*listed, f"... of {len(value)} entries"]
    return value
