"""Every error that tensorbus raises, in one tree.

An error carries its numbers and names as attributes and builds its text from them, so that a program can act on the
attributes and a person can act on the text: what happened, the value, the limit, what to do.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Final, Self, TypeVar

from broker.masking import masked

_SHOWN_MAX: Final = 200
"""Characters of a value that is wrong: enough to know it again."""
_PLAIN: Final = (str, bytes, int, float, complex, type(None))


class BrokerError(Exception):
    """The root of all errors of tensorbus."""

    def again(self) -> Self:
        """The same error, for somebody else to raise.

        One that was raised keeps the frames that it went through, and everything in them: whoever keeps the error
        as well, and is in these frames, would stay until the garbage collector comes by.
        """
        return _made(type(self), self.args, self.__dict__)

    def __reduce__(self) -> tuple[object, ...]:
        """So that another process, such as a pool's parent, can read it: it waits for ever for what it cannot read."""
        return _made, (type(self), self.args, self._told())

    def _told(self) -> dict[str, object]:
        """The attributes, as far as another process can have them."""
        return dict(self.__dict__)


E = TypeVar("E", bound=BrokerError)


def _made(kind: type[E], arguments: tuple[object, ...], attributes: Mapping[str, object]) -> E:
    """An error with this text and these attributes, whatever its kind makes of other arguments."""
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(attributes)
    return error


def _shown(value: object) -> str:
    """A value for an error's text, which a payload in the place of an option shall not fill."""
    if isinstance(value, (str, bytes, bytearray)):
        return repr(value[:_SHOWN_MAX]) + (f"... of {len(value)}" if len(value) > _SHOWN_MAX else "")
    try:
        text = repr(value)
    except ValueError:
        # Python writes no number of more than some thousand digits.
        return f"{type(value).__name__} that is too long to be shown"
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


class InvalidValue(BrokerError, ValueError):
    """An argument that cannot be used: a topic, a filter, an option, an array.

    Attributes:
        what: the argument, in words (`"topic"`).
        value: the value that was given; in a copy for another process its text, where it is neither text nor number.
        problem: what is wrong with it and what to do, in words.
    """

    def __init__(self, what: str, value: object, problem: str) -> None:
        self.what = what
        self.value = value
        self.problem = problem
        # Whoever puts a token where it does not belong shall not find it in a log.
        super().__init__(masked(f"{what} {_shown(value)}: {problem}"))

    def _told(self) -> dict[str, object]:
        # It may be anything, a lock or a client among them.
        value = self.value if isinstance(self.value, _PLAIN) else _shown(self.value)
        return {**self.__dict__, "value": value}


class ConfigError(InvalidValue):
    """A setting that cannot be used; the text names the setting and where it came from."""


class ConnectError(BrokerError):
    """No broker could be reached, or it refused the session.

    Attributes:
        address: the address (or addresses) that were tried.
        reason: what the attempt met.
    """

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        self.reason = reason
        super().__init__(f"cannot connect to {address}: {reason}")


class ListenError(BrokerError):
    """The daemon cannot accept connections at an address: in use, forbidden, or not on this machine."""

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        self.reason = reason
        super().__init__(f"cannot listen on {address}: {reason}")


class ConnectionClosed(BrokerError):
    """The connection, the client or the subscription is closed; nothing more goes through it.

    Attributes:
        code: the close code of docs/wire.md section 7, 0 when the peer vanished without one.
        reason: the peer's words, or what the operating system said.
    """

    def __init__(self, reason: str, code: int = 0) -> None:
        self.reason = reason
        self.code = code
        super().__init__(f"closed: {reason}" + (f" (code {code})" if code else ""))

    @classmethod
    def by(cls, error: BrokerError) -> ConnectionClosed:
        """What an error that ended a connection is to those who wait for it."""
        return cls(error.reason, error.code) if isinstance(error, ConnectionClosed) else cls(str(error))


class TimeoutError(BrokerError, builtins.TimeoutError):
    """A wait reached its time-out; what was waited for may still happen later.

    Attributes:
        waited_for: in words.
        timeout_s: how long was waited, in seconds.
    """

    def __init__(self, waited_for: str, timeout_s: float) -> None:
        self.waited_for = waited_for
        self.timeout_s = timeout_s
        super().__init__(f"timed out after {timeout_s:g} s waiting for {waited_for}")


class PermissionDenied(BrokerError):
    """The broker does not allow this session to do this."""


class LimitExceeded(BrokerError):
    """A bound of the broker or of this client was reached; the text names the limit, its value and how to raise it.

    One that begins below its value, as that of memory does, says `advice` from where on.

    Attributes:
        limit: the name of the limit.
        value: what was asked for.
        maximum: the limit's value.
        advice: what to do.
    """

    def __init__(self, limit: str, value: int, maximum: int, advice: str = "") -> None:
        self.limit = limit
        self.value = value
        self.maximum = maximum
        self.advice = advice
        compared = "is over the limit of" if value > maximum else "of"
        super().__init__(f"{limit}: {value} {compared} {maximum}" + (f"; {advice}" if advice else ""))


class ProtocolError(BrokerError):
    """Bytes that docs/wire.md does not allow.

    Attributes:
        code: the close code that the session ends with (docs/wire.md section 7).
    """

    def __init__(self, text: str, code: int = 2) -> None:
        self.code = code
        super().__init__(text)


class NoResponders(BrokerError):
    """A request to a topic at which nobody responds.

    Attributes:
        topic: the topic of the request.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        advice = "start a responder, or check the topic's spelling; whoever only subscribes is not waited for"
        super().__init__(f"nobody responds at {topic!r}: {advice}")


class RequestFailed(BrokerError):
    """The responder's function raised; the text is what it said.

    Attributes:
        topic: the topic of the request.
        remote_error: the type and text of the responder's exception.
    """

    def __init__(self, topic: str, remote_error: str) -> None:
        self.topic = topic
        self.remote_error = remote_error
        super().__init__(f"the responder at {topic!r} failed: {remote_error}")


class ResponderLost(BrokerError):
    """A responder was gone before it had said its last reply; whether its function ran is not known.

    Attributes:
        topic: the topic of the request.
        reason: what became of the responder.
    """

    def __init__(self, topic: str, reason: str) -> None:
        self.topic = topic
        self.reason = reason
        super().__init__(f"a responder at {topic!r} was lost before its last reply: {reason}")


class CollectiveError(BrokerError):
    """A collective operation or its group failed.

    Attributes:
        group: the group's name.
    """

    def __init__(self, group: str, text: str) -> None:
        self.group = group
        Exception.__init__(self, f"group {group!r}: {text}")


class CollectiveMismatchError(CollectiveError):
    """The ranks did not ask for the same operation; it failed on every rank and no array was changed.

    Attributes:
        sequence: the number of the operation in the group's generation.
        claims: for each rank that arrived, what it asked for, in words.
    """

    def __init__(self, group: str, sequence: int, claims: Mapping[int, str]) -> None:
        self.sequence = sequence
        self.claims = dict(claims)
        told = "; ".join(f"rank {rank}: {claim}" for rank, claim in sorted(self.claims.items()))
        super().__init__(group, f"operation {sequence} does not match on all ranks: {told}")


class RankTimeoutError(CollectiveError, TimeoutError):
    """Ranks did not arrive before the deadline; the operation failed on every rank and no array was changed.

    Attributes:
        missing_ranks: the ranks that had not arrived, ascending.
        sequence: the number of the operation, or 0 while the group forms.
        timeout_s: the deadline that was reached, in seconds.
    """

    def __init__(self, group: str, sequence: int, missing_ranks: Sequence[int], timeout_s: float) -> None:
        self.sequence = sequence
        self.missing_ranks = sorted(missing_ranks)
        self.timeout_s = timeout_s
        self.waited_for = f"ranks {self.missing_ranks}"
        what = f"operation {sequence}" if sequence else "forming the group"
        CollectiveError.__init__(
            self, group, f"{what}: after {timeout_s:g} s ranks {self.missing_ranks} had not arrived"
        )


class CollectiveAbortedError(CollectiveError):
    """The program of a rank gave the operation up; it failed on every rank and no array was changed.

    Attributes:
        sequence: the number of the operation in the group's generation; 0 of one on devices.
        rank: who gave it up: by `cancel` or `abort`, or because a signal's handler raised.
    """

    def __init__(self, group: str, sequence: int, rank: int) -> None:
        self.sequence = sequence
        self.rank = rank
        which = f"operation {sequence}" if sequence else "an operation on devices"
        super().__init__(group, f"{which}: the program of rank {rank} gave it up")


class GenerationChangedError(CollectiveError):
    """The members of the group changed; pending operations failed and no array was changed by them.

    Raised once per change on every rank, in a pending call or in the next one. Calls after it run in the new
    generation.

    Attributes:
        generation: the new generation.
        lost_ranks: ranks that are gone, ascending; empty when somebody joined.
        ranks: the ranks of the new generation, ascending.
    """

    def __init__(self, group: str, generation: int, lost_ranks: Sequence[int], ranks: Sequence[int]) -> None:
        self.generation = generation
        self.lost_ranks = sorted(lost_ranks)
        self.ranks = sorted(ranks)
        lost = f"lost ranks {self.lost_ranks}, " if self.lost_ranks else ""
        super().__init__(group, f"generation {generation}: {lost}now ranks {self.ranks}")


class GroupFinishedError(CollectiveError):
    """The other members have finished what the group was for, and this rank has come too late to take part."""

    def __init__(self, group: str) -> None:
        super().__init__(group, "its members have finished; there is nothing left to do for whoever comes now")


class StateMismatchError(CollectiveError):
    """The state of another rank does not fit into the arrays of this one, which are as they were.

    Attributes:
        rank: whose state it is.
        place: where, such as `state['model']['weight']`.
    """

    def __init__(self, group: str, rank: int, place: str, own: str, received: str) -> None:
        self.rank = rank
        self.place = place
        text = f"{place} is {own} here and {received} on rank {rank}; make the same model on all ranks"
        super().__init__(group, text)


class RankBehindError(CollectiveError):
    """The others have gone on without this rank for so long that what it has missed is not kept any more.

    It is a member still, but its state cannot follow: call `regroup`, upon which all meet in `sync_state`.

    Attributes:
        sequence: the number of the operation that this rank came for.
        missed: how many operations the others have finished since.
    """

    def __init__(self, group: str, sequence: int, missed: int) -> None:
        self.sequence = sequence
        self.missed = missed
        text = f"operation {sequence} is over and forgotten, and {missed} after it; regroup and sync_state"
        super().__init__(group, text)


def without_frames(cause: BrokerError) -> BrokerError:
    """The failure, and what it comes from, without the frames of the calls in which they were raised: these refer to
    the buffers of a write, and so to memory of others, for as long as the failure is known."""
    error: BaseException | None = cause
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
    return cause
