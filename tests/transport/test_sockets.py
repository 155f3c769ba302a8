"""What tcp and unix listeners share: errors of the system in plain words."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from broker.errors import LimitExceeded
from broker.transport import Address, Listener, connect
from broker.transport.sockets import connect_error, in_plain_words, listen_error

from .driving import PATIENCE_S, accept, wait_readable

ADDRESS = Address("tcp", host="broker", port=4870)


@contextmanager
def no_descriptor_left() -> Iterator[int]:
    """Lowers this process's limit to what is open now; gives the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield lowest_free
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("listen_address", ["tcp", "unix"], indirect=True)
def test_accept_names_the_limit_when_no_descriptor_is_left_and_goes_on_later(listener: Listener) -> None:
    with connect(listener.address, PATIENCE_S) as dialled:
        wait_readable(listener)
        with no_descriptor_left() as files_max, pytest.raises(LimitExceeded) as caught:
            listener.accept()
        assert caught.value.limit == "RLIMIT_NOFILE"
        assert caught.value.maximum == files_max
        assert "ulimit -n" in str(caught.value)
        with accept(listener) as accepted:
            assert accepted.peer_address == dialled.local_address


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ECONNREFUSED, "refused"), "is the broker running"),
        (OSError(errno.EADDRINUSE, "in use"), "in use"),
        (OSError(errno.EADDRNOTAVAIL, "not available"), "not an address of this machine"),
        (OSError(errno.EACCES, "denied"), "permission denied"),
        (OSError(errno.ENOTDIR, "Not a directory"), "Not a directory"),
        (OSError("without a number"), "without a number"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "cannot be looked up"),
    ],
)
def test_an_error_is_told_in_words_with_the_address(error: OSError, words: str) -> None:
    assert words in in_plain_words(error)
    assert words in connect_error(ADDRESS, error, 1.0).reason
    assert listen_error(ADDRESS, error).address == "tcp://broker:4870"


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(errno.EAGAIN, "try again")])
def test_a_dial_that_ran_out_of_time_names_the_time(error: OSError) -> None:
    assert "no answer within 0.25 s" in str(connect_error(ADDRESS, error, 0.25))
