"""An all_reduce that does not wait for everybody: what the application asks for, and what it gets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

import msgspec

from broker.collectives.claims import Quorum
from broker.collectives.member import Member, MemberOperation
from broker.errors import InvalidValue
from broker.limits import WORLD_SIZE_MAX
from clients.collectives import collective
from clients.collectives.collective import Prepared
from clients.connection.checks import text_bytes, time_limit

T = TypeVar("T")

AUTO: Final = "auto"
LATE: Final = ("carry", "drop")


@dataclass(frozen=True, slots=True)
class Partial(Generic[T]):
    """The result of an all_reduce with a quorum. All present ranks get the same array, ranks and carried_ranks.

    Attributes:
        array: the caller's own, now the result, the same to the bit on all ranks, whether they took part or not.
        ranks: whose arrays of this call are in the result, ascending.
        carried_ranks: the rank of each array of an earlier call that came too late for that one and is in this result.
        behind: how many calls with a quorum the others have finished beyond this one; 0 for a rank that keeps up.
        late: whether this rank wanted to take part and came too late.
    """

    array: T
    ranks: tuple[int, ...]
    carried_ranks: tuple[int, ...]
    behind: int
    late: bool

    @property
    def contributions(self) -> int:
        """How many arrays are in the result: a mean is over these, a sum is of these."""
        return len(self.ranks) + len(self.carried_ranks)


@dataclass(frozen=True, slots=True)
class Terms:
    """The arguments of `Group.all_reduce` that only a call with a quorum has."""

    quorum: float
    deadline: float | str
    late: str
    name: str
    contribute: bool

    def of(self, member: Member) -> Quorum:
        """As they travel.

        Raises:
            InvalidValue: one of them cannot be.
        """
        if self.late not in LATE:
            raise InvalidValue("late", self.late, f"is none of {', '.join(LATE)}")
        text_bytes("name", self.name)
        deadline_s = 0.0
        if self.deadline != AUTO:
            if isinstance(self.deadline, str) or not time_limit("deadline", self.deadline) > 0:
                raise InvalidValue("deadline", self.deadline, 'must be "auto" or a number of seconds above 0')
            deadline_s = self.deadline
        return Quorum(
            self._ranks(len(member.ranks)),
            deadline_ns=max(int(deadline_s > 0), int(deadline_s * 1e9)),
            carry=self.late == "carry",
            abstains=not self.contribute,
            name=self.name,
        )

    def _ranks(self, present: int) -> int:
        quorum = self.quorum
        if isinstance(quorum, bool) or not isinstance(quorum, (int, float)) or not quorum > 0:
            raise InvalidValue("quorum", quorum, "must be a number of ranks, or a share of them as 0.75")
        if isinstance(quorum, int):
            # What a group never has cannot be encoded either; how many it has at the moment is said by the broker.
            if quorum > WORLD_SIZE_MAX:
                raise InvalidValue("quorum", quorum, f"must be from 1 to {WORLD_SIZE_MAX} ranks")
            return quorum
        if quorum > 1:
            raise InvalidValue("quorum", quorum, "is a share over 1; a number of ranks is an int")
        # Less a little, so that 0.7 of 10 is 7, whatever binary fractions say.
        return max(1, math.ceil(quorum * present - 1e-9))


def all_reduce(member: Member, value: object, op: str, timeout_s: float, terms: Terms) -> Prepared:
    """Reduces the arrays of those who come in time; every rank's array becomes the result."""
    quorum = terms.of(member)
    prepared = collective.all_reduce(member, value, op, timeout_s)
    claim = msgspec.structs.replace(prepared.claim, quorum=quorum)
    return replace(prepared, claim=claim, contribution=None if quorum.abstains else prepared.contribution)


def completed(prepared: Prepared, operation: MemberOperation, rank: int) -> Prepared:
    """An operation that has begun, with what makes a Partial of its result."""

    def finish(result: memoryview) -> object:
        told, quorum = operation.participation, operation.claim.quorum
        assert told is not None, "the broker says who took part before it sends the last of the result"
        assert quorum is not None
        late = not quorum.abstains and rank not in told.ranks
        return Partial(prepared.complete(result), tuple(told.ranks), tuple(told.carried), told.behind, late)

    return replace(prepared, complete=finish)
