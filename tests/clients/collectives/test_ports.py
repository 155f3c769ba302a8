"""Where a client listens for links, and what its host is."""

from __future__ import annotations

import errno
import logging
from typing import NoReturn

import numpy as np
import pytest

import clients
from broker.collectives import ring
from broker.errors import InvalidValue
from clients.collectives import door, ports
from clients.collectives.entrance import Entrance
from clients.collectives.ports import host_identity, listen, read_link_address
from clients.collectives.ways import Schedule
from tests.clients.serving import ServingThread

LINKS = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine of links is not compiled")


def no_descriptor(*arguments: object) -> NoReturn:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("text", "host", "ports"),
    [
        ("", "", [0]), ("10.0.0.7", "10.0.0.7", [0]), ("10.0.0.7:5000", "10.0.0.7", [5000]),
        (":5000-5002", "", [5000, 5001, 5002]), ("fd00::1", "fd00::1", [0]), ("[fd00::1]:5000", "fd00::1", [5000]),
        ("[fd00::1]", "fd00::1", [0]),
    ],
)  # fmt: skip
def test_link_addresses_are_read(text: str, host: str, ports: list[int]) -> None:
    found, numbers = read_link_address(text)
    assert (found, list(numbers)) == (host, ports)


@pytest.mark.parametrize(
    "text", ["trainer:5000", "10.0.0.7:", "10.0.0.7:9-8", "10.0.0.7:x", "10.0.0.7:70000", "[::1", "0.0.0.0:5000"]
)
def test_what_is_no_link_address_is_refused_and_the_variable_named(text: str) -> None:
    with pytest.raises(InvalidValue, match="TENSORBUS_LINK_ADDRESS"):
        read_link_address(text)


def test_the_first_free_port_is_taken() -> None:
    with listen("127.0.0.1", [0]) as taken:
        port = taken.getsockname()[1]
        with listen("127.0.0.1", [port, 0]) as sock:
            assert sock.getsockname()[1] != port


def test_without_a_free_port_there_is_none_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with listen("127.0.0.1", [0]) as taken, caplog.at_level(logging.WARNING):
        assert listen("127.0.0.1", [taken.getsockname()[1]]) is None
    assert "door.closed" in caplog.text


@LINKS
def test_without_a_descriptor_a_group_is_joined_all_the_same_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ServingThread("tcp://127.0.0.1:0") as broker, clients.connect(broker.url, shared_memory=False) as bus:
        with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
            # Not a low limit: this process has it in common with its broker.
            patch.setattr(ports, "_listening", no_descriptor)
            group = bus.group("pair", world_size=1)
        assert "door.closed" in caplog.text
        assert "Too many open files" in caplog.text
        assert group.all_reduce(np.ones(3)).tolist() == [1.0, 1.0, 1.0]


@LINKS
def test_a_door_that_lacks_a_descriptor_is_none_and_gives_back_its_socket(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "Wakeup", no_descriptor)
    with caplog.at_level(logging.WARNING):
        # A socket that is not closed would be a ResourceWarning, which is an error.
        assert Entrance(lambda call: call()).reach(Schedule.RING, "127.0.0.1") is None
    assert "door.closed" in caplog.text


def test_a_host_is_the_same_each_time() -> None:
    assert host_identity() == host_identity()
    assert len(host_identity()) == 32
