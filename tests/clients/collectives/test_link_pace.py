"""The congestion control of links."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest

from clients.collectives.link_pace import INSTEAD, UNFIT, set_congestion
from tests.collectives.rings import tcp_pair


@pytest.fixture
def link() -> Iterator[socket.socket]:
    first, second = tcp_pair()
    with first, second:
        yield first


def congestion_of(link: socket.socket) -> str:
    return link.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode()


def choose(link: socket.socket, name: str) -> None:
    """As the kernel does for all sockets, where it has this one."""
    try:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except OSError as error:
        pytest.skip(f"the kernel has no {name}: {error}")


def test_bbr_is_left(link: socket.socket) -> None:
    choose(link, INSTEAD)
    choose(link, UNFIT)
    set_congestion(link, "")
    assert congestion_of(link) == INSTEAD


def test_what_else_the_kernel_has_chosen_stays(link: socket.socket) -> None:
    choose(link, "reno")
    set_congestion(link, "")
    assert congestion_of(link) == "reno"


def test_what_is_asked_for_is_taken_bbr_too(link: socket.socket) -> None:
    choose(link, "reno")
    choose(link, UNFIT)
    choose(link, "reno")
    set_congestion(link, UNFIT)
    assert congestion_of(link) == UNFIT


def test_what_the_kernel_does_not_have_is_said_and_changes_nothing(
    link: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    choose(link, "reno")
    with caplog.at_level(logging.WARNING):
        set_congestion(link, "no-such-thing")
    assert congestion_of(link) == "reno"
    assert "no-such-thing" in caplog.text


def test_a_link_that_is_not_tcp_stays_as_it_is() -> None:
    first, second = socket.socketpair()
    with first, second:
        set_congestion(first, "")
        first.send(b"x")
        assert second.recv(1) == b"x"
