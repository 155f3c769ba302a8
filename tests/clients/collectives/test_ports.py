"""Where a client listens for links, and what its host is."""

from __future__ import annotations

import logging

import pytest

from broker.errors import InvalidValue
from clients.collectives.ports import host_identity, listen, read_link_address


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


def test_a_host_is_the_same_each_time() -> None:
    assert host_identity() == host_identity()
    assert len(host_identity()) == 32
