"""What is particular to inproc: the table of names, and the broker that is started on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from broker.errors import ConfigError, ConnectError, ListenError
from broker.transport import Connection, Listener, connect, inproc, listen
from broker.transport.embedding import set_broker_factory

from .driving import PATIENCE_S, accept, receive_exactly, send_all

Started = dict[str, Listener]


@pytest.fixture
def started() -> Iterator[Started]:
    """The listeners that a factory has started, by name."""
    listeners: Started = {}
    yield listeners
    for listener in listeners.values():
        listener.close()


def starter(started: Started) -> Callable[[str], None]:
    def start(name: str) -> None:
        started[name] = listen(f"inproc://{name}")

    return start


def test_without_a_factory_a_name_must_be_listened_at_first() -> None:
    with pytest.raises(ConnectError, match="nobody listens at that name in this process"):
        connect("inproc://alone", PATIENCE_S)


def test_a_factory_starts_the_broker_of_a_name_once(started: Started) -> None:
    set_broker_factory(starter(started))
    with connect("inproc://job", PATIENCE_S) as first, connect("inproc://job", PATIENCE_S) as second:
        assert list(started) == ["job"]
        for dialled in (first, second):
            with accept(started["job"]) as accepted:
                send_all(dialled, [b"x"])
                assert receive_exactly(accepted, 1) == b"x"


def test_a_factory_is_not_asked_for_a_name_that_is_listened_at(started: Started) -> None:
    set_broker_factory(starter(started))
    with listen("inproc://present"), connect("inproc://present", PATIENCE_S) as dialled:
        assert dialled.peer_address == "inproc://present"
        assert started == {}


def test_threads_that_dial_a_name_at_once_share_the_broker_that_one_of_them_starts(started: Started) -> None:
    set_broker_factory(starter(started))
    together = threading.Barrier(8)

    def dial() -> Connection:
        together.wait(PATIENCE_S)
        return connect("inproc://shared", PATIENCE_S)

    with ThreadPoolExecutor(8) as pool:
        ends = [future.result(PATIENCE_S) for future in [pool.submit(dial) for _ in range(8)]]
    assert list(started) == ["shared"]
    for end in ends:
        end.close()


def test_a_factory_that_fails_makes_the_dial_fail_with_its_reason(started: Started) -> None:
    def fail(name: str) -> None:
        raise ConfigError("name", name, "the configuration has a mistake")

    set_broker_factory(fail)
    with pytest.raises(ConnectError, match="the configuration has a mistake"):
        connect("inproc://broken", PATIENCE_S)


def test_a_factory_that_starts_nothing_makes_the_dial_fail(started: Started) -> None:
    set_broker_factory(lambda name: None)
    with pytest.raises(ConnectError, match="does not listen there"):
        connect("inproc://idle", PATIENCE_S)


def test_a_name_in_use_is_told() -> None:
    with listen("inproc://taken"), pytest.raises(ListenError, match="the name is in use in this process"):
        listen("inproc://taken")


def test_different_names_are_different_brokers() -> None:
    with listen("inproc://a") as a, listen("inproc://b") as b, connect("inproc://b", PATIENCE_S), accept(b):
        assert a.accept() is None


def test_too_many_who_wait_are_refused_until_one_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inproc, "LISTEN_BACKLOG", 2)
    with ExitStack() as ends, listen("inproc://busy") as listener:
        for _ in range(2):
            ends.enter_context(connect(listener.address, PATIENCE_S))
        with pytest.raises(ConnectError, match="2 connections wait"):
            connect(listener.address, PATIENCE_S)
        ends.enter_context(accept(listener))
        assert not ends.enter_context(connect(listener.address, PATIENCE_S)).closed


def test_offering_to_a_listener_that_has_closed_is_refused() -> None:
    with listen("inproc://other") as other, connect("inproc://other", PATIENCE_S), accept(other) as connection:
        listener = listen("inproc://brief")
        assert isinstance(listener, inproc.InprocListener)
        listener.close()
        with pytest.raises(ConnectError, match="has just closed"):
            listener.offer(connection)
        assert connection.closed
