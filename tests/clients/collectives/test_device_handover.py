"""Descriptors from rank to rank, and from whoever else finds the socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from broker.limits_devices import DEVICE_STRANGERS_MAX, DEVICE_TOKEN_BYTES
from clients.collectives import device_handover
from clients.collectives.device_handover import Handover

TOKENS = [bytes([rank]) * DEVICE_TOKEN_BYTES for rank in range(3)]


@pytest.fixture
def files() -> Iterator[list[int]]:
    """A file for each rank, which has its number in it."""
    found = [os.memfd_create(str(rank)) for rank in range(3)]
    for rank, descriptor in enumerate(found):
        os.write(descriptor, bytes([rank]))
    yield found
    for descriptor in found:
        os.close(descriptor)


@pytest.fixture
def ends() -> Iterator[list[Handover]]:
    found = [Handover(3) for _ in range(3)]
    yield found
    for each in found:
        each.close()


def taken(end: Handover, positions: dict[bytes, int]) -> dict[int, int]:
    """What is in the files that have come, by positions."""
    found = end.take(positions)
    assert not any(map(os.get_inheritable, found.values()))
    read = {position: os.pread(descriptor, 1, 0)[0] for position, descriptor in found.items()}
    for descriptor in found.values():
        os.close(descriptor)
    return read


def test_each_rank_gets_what_the_others_have(ends: list[Handover], files: list[int]) -> None:
    for rank, end in enumerate(ends):
        end.give([each.name for each in ends if each is not end], TOKENS[rank], files[rank])
    for rank, end in enumerate(ends):
        assert taken(end, {token: at for at, token in enumerate(TOKENS) if at != rank}) == {
            at: at for at in range(3) if at != rank
        }


def test_what_has_not_come_is_not_waited_for(ends: list[Handover], files: list[int]) -> None:
    ends[1].give([ends[0].name], TOKENS[1], files[1])
    assert taken(ends[0], {TOKENS[1]: 1, TOKENS[2]: 2}) == {1: 1}


def test_strangers_are_dropped_and_hinder_nobody(ends: list[Handover], files: list[int]) -> None:
    before, target = len(os.listdir("/proc/self/fd")), device_handover._address(ends[0].name)
    with ExitStack() as open_ones:
        for _ in range(DEVICE_STRANGERS_MAX // 2):
            silent = open_ones.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            silent.connect(target)
        for words in (b"?", TOKENS[0], TOKENS[1] + b"?", TOKENS[1][:-1]):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(target)
                socket.send_fds(sock, [words], [files[2]])
        ends[1].give([ends[0].name], TOKENS[1], files[1])
        ends[2].give([ends[0].name], TOKENS[1], files[2])
        assert taken(ends[0], {TOKENS[1]: 1, TOKENS[2]: 2}) == {1: 1}, "the first with a token is the one"
    assert len(os.listdir("/proc/self/fd")) <= before


def test_nobody_is_there_any_more(ends: list[Handover], files: list[int]) -> None:
    ends[0].close()
    with pytest.raises(ConnectionRefusedError):
        ends[1].give([ends[0].name], TOKENS[1], files[1])
