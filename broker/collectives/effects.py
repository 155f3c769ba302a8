"""What a group asks its broker to do: frames to send, each to one session, in the order in which they are listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from broker.buffers import Buffer
from broker.collectives.claims import Claim
from broker.errors import (
    CollectiveAbortedError,
    CollectiveError,
    CollectiveMismatchError,
    GroupFinishedError,
    RankBehindError,
    RankTimeoutError,
)
from broker.ids import Generation, GroupNumber, Rank, SessionId


class RefusalKind(StrEnum):
    """Why a session cannot be a member."""

    ALREADY_MEMBER = "already_member"
    WORLD_SIZE = "world_size"
    RANK_OUT_OF_RANGE = "rank_out_of_range"
    RANK_TAKEN = "rank_taken"
    FULL = "full"
    TIMEOUT = "timeout"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Joined:
    """The session is a member from this generation on; `ranks` are all members, ascending."""

    session: SessionId
    rank: Rank
    generation: Generation
    ranks: tuple[Rank, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The session is not a member; `missing_ranks` and `timeout_s` are set when it has waited in vain."""

    session: SessionId
    kind: RefusalKind
    text: str
    missing_ranks: tuple[Rank, ...] = ()
    timeout_s: float = 0.0

    def error(self, group: str) -> CollectiveError:
        """What the session's program is to catch."""
        if self.kind is RefusalKind.TIMEOUT:
            return RankTimeoutError(group, 0, self.missing_ranks, self.timeout_s)
        if self.kind is RefusalKind.FINISHED:
            return GroupFinishedError(group)
        return CollectiveError(group, self.text)


@dataclass(frozen=True, slots=True)
class Result:
    """A stretch of an operation's result. Results of one round may share a payload; nobody may write to it.

    Attributes:
        generation: of the operation; the group's own may be a later one by now, when the end has let a newcomer in.
        position: whose array this is a part of for all_gather, gather and all_to_all, the receiver's own for
            reduce_scatter and scatter, else 0.
        last: nothing more comes for this operation.
        channel: of an operation between two ranks; see channels.py.
        claim: in round 0, for a receiver that did not know what it would get.
    """

    session: SessionId
    generation: Generation
    sequence: int
    round: int
    position: int
    payload: Buffer
    last: bool
    channel: int = 0
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The ranks do not ask for the same operation, or for one that these members cannot carry out."""

    claims: Mapping[int, str]

    def error(self, group: str, sequence: int) -> CollectiveMismatchError:
        """What every rank's program is to catch."""
        return CollectiveMismatchError(group, sequence, self.claims)


@dataclass(frozen=True, slots=True)
class Missing:
    """These ranks held the operation up until its deadline."""

    ranks: tuple[Rank, ...]
    timeout_s: float

    def error(self, group: str, sequence: int) -> RankTimeoutError:
        """What every rank's program is to catch."""
        return RankTimeoutError(group, sequence, self.ranks, self.timeout_s)


@dataclass(frozen=True, slots=True)
class Behind:
    """The operation is over and its result not kept: the rank cannot follow; `missed` have closed after it."""

    missed: int

    def error(self, group: str, sequence: int) -> RankBehindError:
        """What the late rank's program is to catch."""
        return RankBehindError(group, sequence, self.missed)


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The program of one rank has cancelled the operation."""

    rank: Rank

    def error(self, group: str, sequence: int) -> CollectiveAbortedError:
        """What every rank's program is to catch."""
        return CollectiveAbortedError(group, sequence, self.rank)


Failure = Mismatch | Missing | Behind | GivenUp


@dataclass(frozen=True, slots=True)
class Failed:
    """The operation has failed on every rank; the group goes on with the next one."""

    session: SessionId
    generation: Generation
    sequence: int
    failure: Failure
    channel: int = 0


@dataclass(frozen=True, slots=True)
class Changed:
    """The members have changed: operations in progress are void and the next one has sequence 1.

    Attributes:
        lost_ranks: who is gone, ascending; empty when somebody has joined.
        ranks: all members, ascending.
    """

    session: SessionId
    generation: Generation
    lost_ranks: tuple[Rank, ...]
    ranks: tuple[Rank, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The session has become a member after the others had finished: it is to leave."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class TookPart:
    """Who is in the result of a quorum operation; its Results follow at once.

    Attributes:
        ranks: whose contribution to this operation is in it, ascending.
        carried: the rank of each contribution to an earlier one that is in it.
        behind: how many quorum operations have closed after this one.
    """

    session: SessionId
    generation: Generation
    sequence: int
    ranks: tuple[Rank, ...]
    carried: tuple[Rank, ...]
    behind: int


@dataclass(frozen=True, slots=True)
class Lagging:
    """A rank has missed a quorum operation; said of each rank once a second at most."""

    rank: Rank
    sequence: int


@dataclass(frozen=True, slots=True)
class Wake:
    """`tick` has something to do at this time, which cannot wait for the next regular one."""

    at_ns: int


@dataclass(frozen=True, slots=True)
class Dissolved:
    """Nobody is a member or waits to be one: the group can be forgotten."""

    group: GroupNumber


Effect = Joined | Refused | Result | Failed | Changed | Finished | TookPart | Lagging | Wake | Dissolved
