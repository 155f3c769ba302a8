"""What others are told that somebody is called."""

from __future__ import annotations

import pytest

from broker.security.identity import ANYBODY, Identity


def test_who_has_proven_nothing_is_called_as_it_likes() -> None:
    assert ANYBODY.called("trainer-3") == "trainer-3"
    assert ANYBODY.called("") == ""


@pytest.mark.parametrize("proof", ["certificate", "token", "unix"])
@pytest.mark.parametrize(
    ("said", "called"),
    [
        ("", "trainer-3"),
        ("trainer-3", "trainer-3"),
        ("trainer-3/loader", "trainer-3/loader"),
        ("loader", "trainer-3/loader"),
        ("trainer-4", "trainer-3/trainer-4"),
        ("trainer-30", "trainer-3/trainer-30"),
        ("/trainer-3", "trainer-3//trainer-3"),
    ],
)
def test_a_name_that_was_proven_comes_first(proof: str, said: str, called: str) -> None:
    assert Identity("trainer-3", ("trainer",), proof=proof).called(said) == called  # type: ignore[arg-type]


def test_who_may_do_everything_is_called_as_it_likes() -> None:
    assert Identity("root", ("admin",), proof="unix").called("trainer-3") == "trainer-3"
