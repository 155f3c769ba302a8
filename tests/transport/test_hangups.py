"""Hangups: what has failed is found, with its owner, and nothing else."""

from __future__ import annotations

import socket
import struct

import pytest

from broker.transport.hangups import Hangups


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_reset_is_found_though_bytes_are_unread_and_as_often_as_one_asks() -> None:
    (near, far), (other, quiet) = tcp_pair(), tcp_pair()
    with near, other, quiet:
        hangups: Hangups[str] = Hangups()
        hangups.add(near.fileno(), "near")
        hangups.add(other.fileno(), "other")
        quiet.send(b"something to read is no failure")
        far.send(b"unread")
        assert hangups.find() == []
        reset(far)
        assert hangups.find() == ["near"]
        assert hangups.find() == ["near"]
        assert near.recv(100) == b"unread"
        with pytest.raises(ConnectionResetError):
            near.recv(100)


def test_a_peer_that_has_said_all_but_still_listens_has_not_failed() -> None:
    near, far = tcp_pair()
    with near, far:
        hangups: Hangups[str] = Hangups()
        hangups.add(near.fileno(), "near")
        far.shutdown(socket.SHUT_WR)
        assert hangups.find() == []


def test_what_was_removed_is_not_found() -> None:
    near, far = tcp_pair()
    with near:
        hangups: Hangups[str] = Hangups()
        hangups.add(near.fileno(), "near")
        hangups.remove(near.fileno())
        hangups.remove(near.fileno())
        reset(far)
        assert hangups.find() == []
