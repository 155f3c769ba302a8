"""A client learns how many workers there are with its first connection, and from then on there have to be as many."""

from __future__ import annotations

import msgspec
import pytest

import clients
from broker.errors import ConnectError
from broker.transport.addresses import parse
from clients.connection import link
from tests.clients.serving import PATIENCE_S, ServingThread


def no_memory(frame: object, size_bytes: int) -> memoryview:
    raise AssertionError("nothing large comes")


def test_a_broker_that_is_one_is_one_worker() -> None:
    with ServingThread("tcp://127.0.0.1:0") as broker, clients.connect(broker.url) as bus:
        assert type(bus) is clients.Client


def test_the_number_is_written_into_the_hello() -> None:
    greeting = link.hello("a", "", "", shared=False)
    assert (greeting.worker, greeting.workers) == (0, 0)
    with ServingThread("tcp://127.0.0.1:0") as broker:
        found = link.dial([parse(broker.url)], greeting, PATIENCE_S, no_memory)
        found.connection.close()
        assert greeting.workers == 1


def test_another_number_is_no_session_and_says_what_to_do() -> None:
    greeting = msgspec.structs.replace(link.hello("a", "", "", shared=False), worker=2, workers=3)
    with ServingThread("tcp://127.0.0.1:0") as broker:
        with pytest.raises(ConnectError, match=r"has 1 workers, and this client was told of 3.*connect anew"):
            link.dial([parse(broker.url)], greeting, PATIENCE_S, no_memory)
        broker.wait_until_idle()
    assert greeting.workers == 3
