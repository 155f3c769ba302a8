"""Which worker a ClientHello names, whoever has written it and however it comes."""

from __future__ import annotations

import pytest

from broker.limits import STRANGER_RECORDS_MAX, WORKERS_MAX
from broker.transport.tls.hello import FIRST, NOBODY, has_whole_hello, protocol_of, worker_named
from tests.transport.hellos import ALPN, KEY_SHARE, SERVER_NAME, alpn, in_records, spoken, written

OTHERS = ((SERVER_NAME, b"\0\x0e\0\0\x0bbroker.test"), (KEY_SHARE, bytes(40)))


@pytest.mark.parametrize("worker", [1, 9, WORKERS_MAX - 1])
def test_what_openssl_says_names_the_worker(worker: int) -> None:
    hello = spoken(protocol_of(worker))
    assert has_whole_hello(hello)
    assert worker_named(hello) == worker


def test_who_names_none_means_the_first() -> None:
    assert worker_named(spoken()) == worker_named(spoken("h2", "http/1.1")) == FIRST
    assert worker_named(in_records(written())) == FIRST


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_name_may_stand_anywhere(place: int) -> None:
    named = alpn(b"h2", b"tensorbus-worker/12", b"x")
    extensions = [*OTHERS[:place], named, *OTHERS[place:]]
    assert worker_named(in_records(written(*extensions))) == 12


def test_it_is_whole_with_its_last_byte_and_what_follows_changes_nothing() -> None:
    for hello in (spoken(protocol_of(3)), in_records(written(*OTHERS, alpn(b"tensorbus-worker/3")), [1, 2, 3, 50])):
        assert not any(has_whole_hello(hello[:length]) for length in range(len(hello)))
        assert all(worker_named(hello[:length]) in (NOBODY, FIRST, 3) for length in range(len(hello)))
        for more in (b"", b"\x16", b"\x17\x03\x03\xff\xff", bytes(100)):
            assert has_whole_hello(hello + more)
            assert worker_named(hello + more) == 3


def test_it_may_come_in_several_records_and_in_too_many_means_nobody_waits_for_the_rest() -> None:
    message = written(*OTHERS, alpn(b"tensorbus-worker/5"))
    few = in_records(message, [10] * (STRANGER_RECORDS_MAX - 1))
    assert has_whole_hello(few)
    assert worker_named(few) == 5
    many = in_records(message, [1] * STRANGER_RECORDS_MAX)
    assert has_whole_hello(many[: 6 * STRANGER_RECORDS_MAX])
    assert worker_named(many) == FIRST
    assert has_whole_hello(b"\x16\x03\x01\0\0" * STRANGER_RECORDS_MAX)
    assert worker_named(b"\x16\x03\x01\0\0" * STRANGER_RECORDS_MAX) == NOBODY


@pytest.mark.parametrize(
    "name",
    [b"", b"tensorbus-worker/", b"tensorbus-worker/-1", b"tensorbus-worker/x", b"tensorbus-worker/100", b"worker/1",
     b"tensorbus-worker/1 ", b"tensorbus-worker/\xc2\xb9"],
)  # fmt: skip
def test_what_is_no_name_of_a_worker_is_passed_over(name: bytes) -> None:
    assert worker_named(in_records(written(alpn(name)))) == FIRST
    assert worker_named(in_records(written(alpn(name, b"tensorbus-worker/2")))) == 2


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x15\x03\x01\0\x02\x02\x28",
        b"\x93TBUS\r\n\x1a",
        b"\x80\x2e\x01\x03\x01",
        in_records(written(alpn(b"tensorbus-worker/2"), kind=2)),
    ],
)
def test_what_is_no_client_hello_is_told_so_by_whoever_has_accepted(said: bytes) -> None:
    assert has_whole_hello(said)
    assert worker_named(said) == NOBODY


def test_a_handshake_that_breaks_off_with_another_record_is_not_waited_for() -> None:
    begun = in_records(written(alpn(b"tensorbus-worker/2"))[:60])
    assert not has_whole_hello(begun)
    assert has_whole_hello(begun + b"\x15\x03\x01\0\x02\x02\x28")


def test_lengths_that_lie_lead_nowhere() -> None:
    hello = in_records(written(*OTHERS, alpn(b"h2", b"tensorbus-worker/7")))
    for place in range(len(hello)):
        for value in (0, 1, 127, 255):
            lying = hello[:place] + bytes((value,)) + hello[place + 1 :]
            has_whole_hello(lying)
            assert NOBODY <= worker_named(lying) < 100
    # Of ALPN: longer than what there is, shorter, and a name that goes beyond the end.
    for content in (b"", b"\0", b"\xff\xff\x01", b"\0\x05\xfftensorbus-worker/1", b"\0\0"):
        assert worker_named(in_records(written((ALPN, content)))) == FIRST
