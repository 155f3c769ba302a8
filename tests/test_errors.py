"""The tree of errors: their attributes, their texts, and what catches them."""

from __future__ import annotations

import builtins
import copy
import inspect
import multiprocessing
import pickle

import pytest

from broker import errors
from tests.daemon import PATIENCE_S


def test_every_error_is_a_broker_error() -> None:
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    assert len(classes) > 10
    assert all(issubclass(value, errors.BrokerError) for value in classes)


def test_an_error_can_be_raised_again_without_what_the_first_one_has_seen() -> None:
    first = errors.GenerationChangedError("dp", 3, [1], [0, 2])
    with pytest.raises(errors.GenerationChangedError):
        raise first
    second = first.again()
    assert first.__traceback__ is not None
    assert second.__traceback__ is None
    assert (type(second), str(second), vars(second)) == (type(first), str(first), vars(first))


def test_every_error_is_documented() -> None:
    undocumented = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.BrokerError) and not value.__doc__
    ]
    assert undocumented == []


SAID = [
    (errors.InvalidValue("topic", "a//b", "level 2 is empty"), "topic 'a//b': level 2 is empty"),
    (errors.ConnectError("tcp://h:1", "refused"), "cannot connect to tcp://h:1: refused"),
    (errors.ListenError("tcp://h:1", "in use"), "cannot listen on tcp://h:1: in use"),
    (errors.ConnectionClosed("bye"), "closed: bye"),
    (errors.ConnectionClosed("bye", 3), "closed: bye (code 3)"),
    (errors.TimeoutError("a reply", 0.5), "timed out after 0.5 s waiting for a reply"),
    (errors.LimitExceeded("sessions", 5, 4), "sessions: 5 is over the limit of 4"),
    (
        errors.LimitExceeded("sessions", 5, 4, "raise sessions_max"),
        "sessions: 5 is over the limit of 4; raise sessions_max",
    ),
    (errors.LimitExceeded("memory", 85, 100, "from 85 % on"), "memory: 85 of 100; from 85 % on"),
    (
        errors.NoResponders("a"),
        "nobody responds at 'a': start a responder, or check the topic's spelling; whoever only subscribes is not "
        "waited for",
    ),
    (errors.RequestFailed("a", "KeyError: 'x'"), "the responder at 'a' failed: KeyError: 'x'"),
    (errors.CollectiveError("dp", "gone"), "group 'dp': gone"),
    (
        errors.CollectiveMismatchError("dp", 4, {1: "sum of float32", 0: "barrier"}),
        "group 'dp': operation 4 does not match on all ranks: rank 0: barrier; rank 1: sum of float32",
    ),
    (
        errors.RankTimeoutError("dp", 4, [3, 1], 60.0),
        "group 'dp': operation 4: after 60 s ranks [1, 3] had not arrived",
    ),
    (
        errors.RankTimeoutError("dp", 0, [1], 5.0),
        "group 'dp': forming the group: after 5 s ranks [1] had not arrived",
    ),
    (
        errors.GenerationChangedError("dp", 2, [1], [2, 0]),
        "group 'dp': generation 2: lost ranks [1], now ranks [0, 2]",
    ),
    (errors.GenerationChangedError("dp", 2, [], [1, 0]), "group 'dp': generation 2: now ranks [0, 1]"),
]


@pytest.mark.parametrize(("error", "text"), SAID)
def test_an_error_says_what_happened(error: errors.BrokerError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    ("error", "caught_as"),
    [
        (errors.InvalidValue("a", 1, "b"), ValueError),
        (errors.ConfigError("a", 1, "b"), errors.InvalidValue),
        (errors.TimeoutError("a", 1.0), builtins.TimeoutError),
        (errors.RankTimeoutError("g", 1, [0], 1.0), builtins.TimeoutError),
        (errors.RankTimeoutError("g", 1, [0], 1.0), errors.TimeoutError),
        (errors.RankTimeoutError("g", 1, [0], 1.0), errors.CollectiveError),
        (errors.CollectiveMismatchError("g", 1, {}), errors.CollectiveError),
        (errors.GenerationChangedError("g", 2, [], []), errors.CollectiveError),
    ],
)
def test_an_error_is_caught_as_its_kind(error: Exception, caught_as: type[Exception]) -> None:
    with pytest.raises(caught_as) as caught:
        raise error
    assert caught.value is error


def test_a_collective_error_carries_what_a_program_acts_on() -> None:
    late = errors.RankTimeoutError("dp", 4, [3, 1], 60.0)
    changed = errors.GenerationChangedError("dp", 2, [3, 1], [2, 0])
    mismatch = errors.CollectiveMismatchError("dp", 4, {0: "barrier"})
    assert (late.group, late.sequence, late.missing_ranks, late.timeout_s) == ("dp", 4, [1, 3], 60.0)
    assert (changed.generation, changed.lost_ranks, changed.ranks) == (2, [1, 3], [0, 2])
    assert (mismatch.sequence, mismatch.claims) == (4, {0: "barrier"})


def test_errors_carry_their_numbers_and_names() -> None:
    limit = errors.LimitExceeded("sessions", 5, 4)
    closed = errors.ConnectionClosed("bye", 3)
    invalid = errors.InvalidValue("topic", "", "is empty")
    assert (limit.limit, limit.value, limit.maximum) == ("sessions", 5, 4)
    assert (closed.reason, closed.code, errors.ProtocolError("bad").code) == ("bye", 3, 2)
    assert (invalid.what, invalid.value) == ("topic", "")


OTHERS = [
    errors.BrokerError("of no kind"),
    errors.ConfigError("setting", "x", "unknown"),
    errors.ResponderLost("a", "gone"),
    errors.CollectiveAbortedError("dp", 3, 1),
    errors.GroupFinishedError("dp"),
]


@pytest.mark.parametrize("error", [*(said[0] for said in SAID), *OTHERS], ids=lambda error: type(error).__name__)
def test_an_error_of_another_process_is_what_it_was_there(error: errors.BrokerError) -> None:
    for told in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(told), str(told), told.args, vars(told)) == (type(error), str(error), error.args, vars(error))


def test_a_value_that_no_other_process_can_have_is_its_text_there() -> None:
    error = errors.InvalidValue("handler", print, "is no text")
    told = pickle.loads(pickle.dumps(error))
    assert (str(told), told.value) == (str(error), repr(print))
    assert error.value is print


def raise_in_worker(number: int) -> int:
    raise errors.RankTimeoutError("dp", number, [1], 5.0)


def test_a_pool_whose_work_fails_goes_on() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for number in (1, 2):
            with pytest.raises(errors.RankTimeoutError) as caught:
                pool.apply_async(raise_in_worker, (number,)).get(PATIENCE_S)
            assert caught.value.missing_ranks == [1]
            assert caught.value.sequence == number
