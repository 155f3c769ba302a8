"""Codes of the wire and the errors that they become."""

from __future__ import annotations

import pytest

from broker import errors
from broker.protocol.bodies import Failure
from broker.protocol.codes import Code, NotInPlace, error_for


def test_the_numbers_of_the_wire_are_fixed() -> None:
    assert {code.name: int(code) for code in Code} == {
        "NORMAL": 1, "PROTOCOL": 2, "VERSION": 3, "NOT_OURS": 4, "HEARTBEAT": 5, "LIMIT": 6, "DENIED": 7, "SHUTDOWN": 8,
        "INVALID": 9, "NO_RESPONDERS": 10, "NOT_FOUND": 11, "PUBLISHER_GONE": 12, "DROPPED": 13,
        "COLLECTIVE": 15, "INTERNAL": 16, "RESPONDER_LOST": 17, "MOVED": 18, "STAGED": 19,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.PROTOCOL, errors.ProtocolError),
        (Code.DENIED, errors.PermissionDenied),
        (Code.INVALID, errors.InvalidValue),
        (Code.NO_RESPONDERS, errors.NoResponders),
        (Code.COLLECTIVE, errors.CollectiveError),
        (Code.LIMIT, errors.BrokerError),
        (Code.NOT_FOUND, errors.BrokerError),
        (Code.INTERNAL, errors.BrokerError),
        (999, errors.BrokerError),
    ],
)
def test_a_code_becomes_its_error_with_the_words_of_the_broker(code: int, kind: type[errors.BrokerError]) -> None:
    error = error_for(Failure(code, "the reason"), "topic/x")
    assert type(error) is kind
    assert "topic/x" in str(error) or "the reason" in str(error)


def test_a_publisher_that_is_to_send_the_bytes_hears_whether_a_reader_is_new() -> None:
    for value in (0, 1):
        error = error_for(Failure(Code.STAGED, "why", value=value), "topic/x")
        assert isinstance(error, NotInPlace)
        assert (str(error), error.is_new) == ("why", bool(value))


def test_a_limit_keeps_its_numbers() -> None:
    error = error_for(Failure(Code.LIMIT, "", "topics_max", 11, 10), "a")
    assert isinstance(error, errors.LimitExceeded)
    assert (error.limit, error.value, error.maximum) == ("topics_max", 11, 10)


def test_attributes_name_what_was_asked_for() -> None:
    assert error_for(Failure(Code.NO_RESPONDERS, ""), "params/pull").topic == "params/pull"
    assert error_for(Failure(Code.COLLECTIVE, "full"), "dp").group == "dp"
