"""What a rank asks for when it starts a collective operation.

Every rank sends its claim with its first chunk. The broker compares the claims of all ranks before it reduces anything,
so ranks whose programs have run apart are told so, each with the words of all the others, in place of a wrong sum.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from enum import StrEnum
from typing import Final

import msgspec

from broker import limits
from broker.errors import InvalidValue
from broker.ids import Rank

INT8_BLOCKS: Final = "int8_blocks"
"""What floats become to be sent as 8-bit numbers; blocks.py."""
ITEM_BYTES: Final = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
    INT8_BLOCKS: 64,
}
"""Bytes of one element, by the name that travels on the wire."""

ARRAY_BYTES_MAX: Final = 2**63 - 1
"""What a 64-bit machine can address. The broker holds only chunks, so this is no bound on memory."""
_DTYPE_LETTERS_SHOWN: Final = 16
"""How much of a stranger's dtype an error repeats."""
_STANDS_FOR_LETTERS_MAX: Final = 300
TIMEOUT_NS_MAX: Final = 2**62
"""146 years: the sum with any clock still fits 64 bits."""


class CollectiveKind(StrEnum):
    """What an operation does."""

    ALL_REDUCE = "all_reduce"
    BROADCAST = "broadcast"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    BARRIER = "barrier"
    REDUCE = "reduce"
    GATHER = "gather"
    SCATTER = "scatter"
    ALL_TO_ALL = "all_to_all"
    SEND = "send"
    RECEIVE = "receive"


class ReduceOp(StrEnum):
    """How contributions become one array."""

    SUM = "sum"
    MEAN = "mean"
    MIN = "min"
    MAX = "max"
    PRODUCT = "product"


QUORUM_OPS: Final = frozenset({ReduceOp.SUM, ReduceOp.MEAN})
"""Only with these does a contribution mean the same in a later operation as in its own."""
REDUCING_KINDS: Final = frozenset({CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER, CollectiveKind.REDUCE})
SHARING_KINDS: Final = frozenset({CollectiveKind.REDUCE_SCATTER, CollectiveKind.SCATTER, CollectiveKind.ALL_TO_ALL})
"""Those that share the first axis out evenly, a shard for each position."""
POINT_KINDS: Final = frozenset({CollectiveKind.SEND, CollectiveKind.RECEIVE})
"""Those between two ranks. Both claim SEND, with the sender as root; who takes whatever comes claims RECEIVE."""
ROOTED_KINDS: Final = POINT_KINDS | {
    CollectiveKind.BROADCAST,
    CollectiveKind.REDUCE,
    CollectiveKind.GATHER,
    CollectiveKind.SCATTER,
}
_ROOT_SENDS: Final = POINT_KINDS | {CollectiveKind.BROADCAST, CollectiveKind.SCATTER}
_ROOT_RECEIVES: Final = frozenset({CollectiveKind.REDUCE, CollectiveKind.GATHER})
PARTS_LETTERS_MAX: Final = 64
TAG_MAX: Final = 0xFFFF
"""Tags are from 0 to this."""
_CHANNEL_MARK: Final = 1 << 48


class Quorum(msgspec.Struct, frozen=True):
    """What a rank asks for in an all_reduce that does not wait for everybody (broker/collectives/quorum.py).

    Attributes:
        ranks: so many have to contribute; the same on all ranks.
        deadline_ns: how long after the first contribution the others are waited for; 0 leaves it to the broker.
        carry: this rank's contribution, should it be late, is added to the next operation over the same tensor.
        abstains: this rank contributes nothing and takes the result.
        name: tells tensors of one dtype and shape apart; the same on all ranks.
    """

    ranks: int
    deadline_ns: int = 0
    carry: bool = True
    abstains: bool = False
    name: str = ""


class Claim(msgspec.Struct, frozen=True):
    """One rank's view of an operation; `check()` it before use when it comes from a stranger.

    Attributes:
        kind: what to do.
        op: how to reduce; None for the kinds that do not reduce.
        root: the rank that has or gets the array; None for the kinds in which all ranks are alike.
        dtype: a name of `ITEM_BYTES`.
        shape: of the array that each rank contributes; `(0,)` for a barrier. Of a scatter the array that is shared out.
        timeout_ns: how long this rank waits for the others, from the arrival of this claim.
        chunk_bytes: payload of every round but the last, which may be shorter.
        stands_for: the array that was encoded to this one, in words; empty when it is sent as it is.
        quorum: how many ranks are enough, and for how long to wait for more; None waits for all.
        parts: of a list of arrays that go as one, in short what they are.
    """

    kind: CollectiveKind
    op: ReduceOp | None
    root: int | None
    dtype: str
    shape: tuple[int, ...]
    timeout_ns: int
    chunk_bytes: int = limits.CHUNK_BYTES
    stands_for: str = ""
    quorum: Quorum | None = None
    parts: str = ""

    @classmethod
    def barrier(cls, timeout_ns: int) -> Claim:
        """A claim that only waits for all ranks."""
        return cls(CollectiveKind.BARRIER, None, None, "uint8", (0,), timeout_ns)

    @property
    def nbytes(self) -> int:
        """Bytes of the array that each rank contributes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def rounds(self) -> int:
        """Chunks of the array; an empty array and a barrier have one, of no bytes."""
        return max(1, -(-self.nbytes // self.chunk_bytes))

    def sent_bytes(self, rank: int) -> int:
        """Bytes of what a rank contributes."""
        if self.kind is CollectiveKind.BARRIER or (self.kind in _ROOT_SENDS and rank != self.root):
            return 0
        if self.quorum is not None and self.quorum.abstains:
            return 0
        return self.nbytes

    def result_bytes(self, rank: int, positions: int) -> int:
        """Bytes of what a rank gets, in a generation of so many members."""
        kind = self.kind
        if kind in _ROOT_RECEIVES and rank != self.root:
            return 0
        if kind in (CollectiveKind.BROADCAST, CollectiveKind.SEND, CollectiveKind.RECEIVE) and rank == self.root:
            return 0
        if kind in (CollectiveKind.ALL_GATHER, CollectiveKind.GATHER):
            return self.nbytes * positions
        return (
            self.nbytes // positions if kind in (CollectiveKind.REDUCE_SCATTER, CollectiveKind.SCATTER) else self.nbytes
        )

    def describe(self) -> str:
        """The claim in words, such as `all_reduce sum float32 (1024, 1024)`."""
        if self.kind is CollectiveKind.BARRIER:
            return str(self.kind)
        if self.kind is CollectiveKind.RECEIVE:
            return f"receive from rank {self.root} whatever comes"
        words: list[str] = [self.kind]
        if self.op is not None:
            words.append(self.op)
        if self.root is not None:
            words.append(f"{'to' if self.kind in _ROOT_RECEIVES else 'from'} rank {self.root}")
        words += [self.dtype, str(tuple(self.shape))]
        if self.stands_for:
            words.append(f"for {self.stands_for[:_STANDS_FOR_LETTERS_MAX]}")
        if self.parts:
            words.append(f"of {self.parts}")
        if self.chunk_bytes != limits.CHUNK_BYTES:
            words.append(f"in chunks of {self.chunk_bytes} bytes")
        if self.quorum is not None:
            words.append(f"with a quorum of {self.quorum.ranks}")
            if self.quorum.name:
                words.append(f"named {self.quorum.name!r}")
        return " ".join(words)

    def matches(self, other: Claim) -> bool:
        """Whether both ask for the same operation. Ranks may wait for different times."""
        if CollectiveKind.RECEIVE in (self.kind, other.kind):
            return self.kind in POINT_KINDS and other.kind in POINT_KINDS and self.root == other.root
        return (
            self.kind is other.kind
            and self.op is other.op
            and self.root == other.root
            and self.dtype == other.dtype
            and self.shape == other.shape
            and self.chunk_bytes == other.chunk_bytes
            and self.stands_for == other.stands_for
            and _agree(self.quorum, other.quorum)
            and self.parts == other.parts
        )

    def check(self, world_size: int) -> None:
        """Refuse a claim that no group of this size can carry out.

        Raises:
            InvalidValue: an unknown dtype, a shape that no array has, a root that is no rank, an op that the kind or
                the dtype does not have, a time-out or a chunk out of bounds.
        """
        self._check_array()
        self._check_root(world_size)
        self._check_op()
        if self.quorum is not None:
            self._check_quorum(self.quorum, world_size)
        if not 0 < self.timeout_ns <= TIMEOUT_NS_MAX:
            raise InvalidValue("timeout_ns", self.timeout_ns, f"must be from 1 to {TIMEOUT_NS_MAX}")
        multiple, longest = max(limits.CHUNK_BYTES_MULTIPLE, ITEM_BYTES[self.dtype]), limits.FRAME_PAYLOAD_BYTES_MAX
        if self.chunk_bytes % multiple or not 0 < self.chunk_bytes <= longest:
            raise InvalidValue("chunk_bytes", self.chunk_bytes, f"must be a multiple of {multiple} up to {longest}")
        if len(self.stands_for) > _STANDS_FOR_LETTERS_MAX:
            raise InvalidValue("stands_for of letters", len(self.stands_for), f"at most {_STANDS_FOR_LETTERS_MAX}")
        if len(self.parts) > PARTS_LETTERS_MAX:
            raise InvalidValue("parts", len(self.parts), f"at most {PARTS_LETTERS_MAX} letters")

    def _check_array(self) -> None:
        if self.dtype not in ITEM_BYTES:
            problem = f"collectives carry {', '.join(ITEM_BYTES)}; convert the array"
            raise InvalidValue("dtype", self.dtype[:_DTYPE_LETTERS_SHOWN], problem)
        if len(self.shape) > limits.DIMENSIONS_MAX:
            raise InvalidValue("number of axes", len(self.shape), f"at most {limits.DIMENSIONS_MAX}; reshape the array")
        if any(length < 0 for length in self.shape):
            raise InvalidValue("shape", self.shape, "has a negative axis")
        # As numpy does, an empty axis does not excuse the others.
        if math.prod(max(1, length) for length in self.shape) * ITEM_BYTES[self.dtype] > ARRAY_BYTES_MAX:
            raise InvalidValue("shape", self.shape, f"is over {ARRAY_BYTES_MAX} bytes, more than any memory holds")
        if self.kind in (CollectiveKind.BARRIER, CollectiveKind.RECEIVE) and self.shape != (0,):
            raise InvalidValue("shape", self.shape, f"{self.kind} carries no array: its shape is (0,)")
        if self.kind in SHARING_KINDS and not self.shape:
            raise InvalidValue("shape", self.shape, f"{self.kind} shares out the first axis, so it needs one")

    def _check_root(self, world_size: int) -> None:
        if self.kind not in ROOTED_KINDS:
            if self.root is not None:
                raise InvalidValue("root", self.root, f"{self.kind} has no root")
        elif self.root is None or not 0 <= self.root < world_size:
            raise InvalidValue("root", self.root, f"must be a rank, from 0 to {world_size - 1}")

    def _check_quorum(self, quorum: Quorum, world_size: int) -> None:
        if self.kind is not CollectiveKind.ALL_REDUCE or self.op not in QUORUM_OPS:
            raise InvalidValue("quorum", quorum.ranks, "is for all_reduce with op sum or mean only")
        if not 1 <= quorum.ranks <= world_size:
            raise InvalidValue("quorum", quorum.ranks, f"must be from 1 to {world_size} ranks")
        if not 0 <= quorum.deadline_ns <= TIMEOUT_NS_MAX:
            raise InvalidValue("deadline_ns", quorum.deadline_ns, f"must be from 0 to {TIMEOUT_NS_MAX}")
        if self.nbytes > limits.QUORUM_ARRAY_BYTES_MAX:
            problem = f"bytes are over the limit of {limits.QUORUM_ARRAY_BYTES_MAX} with a quorum; reduce it in parts"
            raise InvalidValue("array of", self.nbytes, problem)
        if len(quorum.name.encode()) > limits.NAME_BYTES_MAX:
            raise InvalidValue("name", quorum.name, f"is longer than {limits.NAME_BYTES_MAX} bytes")

    def _check_op(self) -> None:
        if self.kind not in REDUCING_KINDS:
            if self.op is not None:
                raise InvalidValue("op", str(self.op), f"{self.kind} does not reduce")
        elif self.op is None:
            raise InvalidValue("op", self.op, f"{self.kind} needs one of {', '.join(ReduceOp)}")
        elif problem := op_problem(self.op, self.dtype):
            raise InvalidValue("op", str(self.op), problem)


def _agree(one: Quorum | None, other: Quorum | None) -> bool:
    """Whether ranks mean the same: each may wait for its own time and do what it wants with what is late."""
    if one is None or other is None:
        return one is other
    return one.ranks == other.ranks and one.name == other.name


def member_problem(claim: Claim, ranks: Collection[int], generation: int) -> str:
    """Why the members of a generation cannot do what they may all ask for, as words to follow the claim; or nothing."""
    if claim.kind in ROOTED_KINDS and claim.root not in ranks:
        return f", but rank {claim.root} is not in generation {generation}"
    if claim.quorum is not None and claim.quorum.ranks > len(ranks):
        return f", but generation {generation} has {len(ranks)} ranks"
    if claim.kind in SHARING_KINDS and claim.shape[0] % len(ranks):
        return f", but {claim.shape[0]} rows cannot be shared out evenly to {len(ranks)} members"
    return ""


def op_problem(op: ReduceOp, dtype: str) -> str | None:
    """Why this dtype has no such reduction, or None when it has one."""
    ordered_only = op in (ReduceOp.MIN, ReduceOp.MAX)
    if dtype == "bool" and not ordered_only:
        return "bool has no arithmetic: use max for or, min for and, or convert the array to an integer"
    if dtype == INT8_BLOCKS:
        return None if op in (ReduceOp.SUM, ReduceOp.MEAN) else f"{dtype} has no {op}: reduce the array as it is"
    if dtype.startswith("complex") and ordered_only:
        return f"{dtype} has no order: reduce the absolute values instead"
    if op is ReduceOp.MEAN and dtype.startswith(("int", "uint")):
        return f"the mean of {dtype} is no {dtype}: use sum, or convert the array to a float"
    return None


def channel_number(from_rank: int, to_rank: int, tag: int) -> int:
    """The number of the channel from one rank to another under a tag, on the wire; never 0.

    | 1 bit: 1 | from u16 | to u16 | tag u16 |
    """
    return _CHANNEL_MARK | from_rank << 32 | to_rank << 16 | tag


def channel_ends(channel: int) -> tuple[Rank, Rank]:
    """The sender and the receiver of a channel."""
    return Rank(channel >> 32 & 0xFFFF), Rank(channel >> 16 & 0xFFFF)
