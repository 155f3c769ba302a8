"""Codes of errors and of closes (docs/wire.md section 7), and the errors that a client raises for them."""

from __future__ import annotations

from enum import IntEnum

from broker import errors
from broker.protocol.bodies import Failure


class Code(IntEnum):
    """Why something was refused or closed."""

    NORMAL = 1
    PROTOCOL = 2
    VERSION = 3
    NOT_OURS = 4
    HEARTBEAT = 5
    LIMIT = 6
    DENIED = 7
    SHUTDOWN = 8
    INVALID = 9
    NO_RESPONDERS = 10
    NOT_FOUND = 11
    PUBLISHER_GONE = 12
    DROPPED = 13
    COLLECTIVE = 15
    INTERNAL = 16
    RESPONDER_LOST = 17
    MOVED = 18
    STAGED = 19


class NotInPlace(errors.BrokerError):
    """A message in the memory of a device is not taken as it is: its publisher is to send the bytes.

    Attributes:
        is_new: whether a reader has only now been told of the memory, so that the next one may well be taken.
    """

    def __init__(self, reason: str, *, is_new: bool) -> None:
        self.is_new = is_new
        super().__init__(reason)


def error_for(failure: Failure, what: str) -> errors.BrokerError:
    """The error that a client raises for an ERROR frame about `what`."""
    code, reason = failure.code, failure.reason
    if code == Code.LIMIT and failure.limit:
        return errors.LimitExceeded(failure.limit, failure.value, failure.maximum, reason)
    if code == Code.DENIED:
        return errors.PermissionDenied(reason)
    if code == Code.INVALID:
        return errors.InvalidValue("request", what, reason)
    if code == Code.PROTOCOL:
        return errors.ProtocolError(reason)
    if code == Code.STAGED:
        return NotInPlace(reason, is_new=bool(failure.value))
    if code == Code.NO_RESPONDERS:
        return errors.NoResponders(what)
    if code == Code.RESPONDER_LOST:
        return errors.ResponderLost(what, reason)
    if code == Code.COLLECTIVE:
        return errors.CollectiveError(what, reason)
    return errors.BrokerError(f"{what}: {reason}")


def failure_of(error: errors.BrokerError) -> Failure:
    """The body of the ERROR frame that tells a client of an error; `error_for` is the way back."""
    if isinstance(error, errors.LimitExceeded):
        return Failure(Code.LIMIT, error.advice, error.limit, error.value, error.maximum)
    if isinstance(error, errors.PermissionDenied):
        return Failure(Code.DENIED, str(error))
    return Failure(Code.INVALID if isinstance(error, errors.InvalidValue) else Code.INTERNAL, str(error))
