"""What is particular to unix: its socket file, and what else may be in the file's place."""

from __future__ import annotations

import os
import socket
import stat
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.errors import ConnectError, ListenError
from broker.limits import LOCAL_SEND_BUFFER_BYTES
from broker.transport import connect, listen
from broker.transport.unix import _guard

from .driving import PATIENCE_S, accept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus.sock"


def leave_stale_file(path: Path) -> None:
    """What a daemon that was killed leaves behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
        daemon.bind(str(path))
        daemon.listen()


def send_buffer_bytes(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def test_close_removes_the_socket_file(path: Path) -> None:
    with listen(f"unix://{path}"):
        assert path.is_socket()
    assert not path.exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_connect_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with listen(f"unix://{path}"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_stale_socket_file_is_replaced(path: Path) -> None:
    leave_stale_file(path)
    with listen(f"unix://{path}") as listener, connect(listener.address, PATIENCE_S), accept(listener) as accepted:
        assert accepted.local_address == f"unix://{path}"


def test_dialling_a_stale_socket_file_is_refused(path: Path) -> None:
    leave_stale_file(path)
    with pytest.raises(ConnectError, match="nobody listens there"):
        connect(f"unix://{path}", PATIENCE_S)


def test_dialling_where_no_file_is_says_so(path: Path) -> None:
    with pytest.raises(ConnectError, match="there is no such file"):
        connect(f"unix://{path}", PATIENCE_S)


def test_a_live_daemons_file_is_left_alone(path: Path) -> None:
    with listen(f"unix://{path}") as listener:
        with pytest.raises(ListenError, match="in use"):
            listen(f"unix://{path}")
        # The second daemon's look at the first shows as somebody who came and went.
        accept(listener).close()
        with connect(listener.address, PATIENCE_S) as dialled, accept(listener) as accepted:
            assert dialled.peer_address == accepted.local_address


def test_a_live_daemon_that_is_too_busy_to_answer_is_left_alone(path: Path) -> None:
    with ExitStack() as sockets:
        fill_backlog(sockets, path)
        with pytest.raises(ListenError, match="in use"):
            listen(f"unix://{path}")
        assert path.is_socket()


def test_a_daemon_that_is_just_starting_is_left_alone(path: Path) -> None:
    # Between bind and listen its file looks stale.
    with listen(f"unix://{path}") as listener:
        address = listener.address
    with _guard(address), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as starting:
        starting.bind(str(path))
        with pytest.raises(ListenError, match="another daemon is starting there"):
            listen(address)
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_not_a_socket_is_never_removed(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to("nowhere")
    with pytest.raises(ListenError, match="not a socket"):
        listen(f"unix://{path}")
    assert os.path.lexists(path)


def test_a_directory_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="folder of its socket file does not exist"):
        listen(f"unix://{tmp_path}/missing/bus.sock")


def test_close_leaves_a_file_that_has_taken_its_place(path: Path) -> None:
    with listen(f"unix://{path}") as first:
        path.unlink()
        with listen(f"unix://{path}") as second:
            first.close()
            with connect(second.address, PATIENCE_S) as dialled:
                assert dialled.peer_address == f"unix://{path}"


def test_close_is_quiet_when_its_file_is_gone(path: Path) -> None:
    listener = listen(f"unix://{path}")
    path.unlink()
    listener.close()
    assert listener.fileno() == -1


def test_the_ends_are_named_by_their_process(path: Path) -> None:
    with listen(f"unix://{path}") as listener, connect(listener.address, PATIENCE_S), accept(listener) as accepted:
        assert accepted.peer_address == f"unix:pid={os.getpid()}"


def test_both_ends_have_a_send_buffer_for_whole_chunks(path: Path) -> None:
    allowed_bytes = min(LOCAL_SEND_BUFFER_BYTES, int(Path("/proc/sys/net/core/wmem_max").read_text()))
    with (
        listen(f"unix://{path}") as listener,
        connect(listener.address, PATIENCE_S) as dialled,
        accept(listener) as accepted,
    ):
        # The kernel doubles what was asked for, to have room for its own book-keeping (socket(7)).
        assert [send_buffer_bytes(end.fileno()) for end in (dialled, accepted)] == [2 * allowed_bytes] * 2


def test_a_dial_waits_for_a_busy_daemon_until_its_time_out(path: Path) -> None:
    with ExitStack() as sockets:
        fill_backlog(sockets, path)
        started_s = time.monotonic()
        with pytest.raises(ConnectError, match="no answer within 0.1 s"):
            connect(f"unix://{path}", 0.1)
        assert 0.05 < time.monotonic() - started_s < PATIENCE_S
        with pytest.raises(ConnectError, match="no answer within"):
            connect(f"unix://{path}", -1.0)


def fill_backlog(sockets: ExitStack, path: Path) -> None:
    """Leaves a listener at a path to which nobody can connect, because as many wait as it allows."""
    daemon = sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    daemon.bind(str(path))
    daemon.listen(0)
    waiting = sockets.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    waiting.connect(str(path))
