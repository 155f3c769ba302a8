"""What a client dials, and when it gives up trying again."""

from __future__ import annotations

import pytest

from broker.errors import ConnectError, PermissionDenied
from broker.limits import RECONNECT_DELAY_FIRST_S, RECONNECT_DELAY_MAX_S
from broker.topics.owners import HOME
from clients.connection.dialling import Dialling, Retries, asked

UNREACHABLE = ConnectError("tcp://127.0.0.1:1", "refused")


def dialling(*, connect_timeout_s: float = 5.0, reconnect_timeout_s: float = 3600.0) -> Dialling:
    return asked(
        "tcp://127.0.0.1:1",
        name="trainer",
        token="",
        tls=None,
        tenant="",
        connect_timeout_s=connect_timeout_s,
        reconnect_timeout_s=reconnect_timeout_s,
        on_reconnect=None,
        shared_memory=True,
    )


def test_another_worker_is_greeted_by_its_number_and_the_first_one_as_before() -> None:
    first = dialling()
    third = first.of_worker(2, 3, "trainer-0")
    assert (third.greeting.name, third.greeting.worker, third.greeting.workers) == ("trainer-0", 2, 3)
    assert (first.greeting.name, first.greeting.worker, first.greeting.workers) == ("trainer", HOME, 0)
    assert third.addresses == first.addresses


def test_the_pauses_double_up_to_a_bound() -> None:
    retries = Retries(dialling())
    pauses_s = [retries.pause_s() for _ in range(20)]
    assert pauses_s[:2] == [RECONNECT_DELAY_FIRST_S, 2 * RECONNECT_DELAY_FIRST_S]
    assert pauses_s[-1] == RECONNECT_DELAY_MAX_S


@pytest.mark.parametrize(
    ("error", "reconnect_timeout_s", "over"),
    [(UNREACHABLE, 3600.0, False), (UNREACHABLE, 0.0, True), (PermissionDenied("not you"), 3600.0, True)],
)
def test_it_ends_with_the_time_or_a_refusal(error: ConnectError, reconnect_timeout_s: float, over: bool) -> None:
    end = Retries(dialling(reconnect_timeout_s=reconnect_timeout_s)).end(error)
    assert (end is not None) is over
    if end is not None:
        assert f"gave up reconnecting after {reconnect_timeout_s:g} s: {error}" in str(end)


def test_a_try_takes_no_longer_than_a_connection_may() -> None:
    assert Retries(dialling(connect_timeout_s=0.5)).timeout_s == 0.5
    assert Retries(dialling(reconnect_timeout_s=0.0)).timeout_s == 0.1
