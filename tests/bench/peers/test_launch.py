"""A peer's server is the process that its parent started, says when it listens, and what is missing is told."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

import pytest

from bench.children import Child, StepFailed, program
from bench.peers import launch

SERVER = """
import os, socket, sys
print("a word to the operator", os.getpid(), flush=True)
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
sys.stdin.read()
"""


def start(address: str, source: str, *arguments: str) -> Child:
    command = [sys.executable, "-m", "bench.peers.launch", address, sys.executable, "-c", source, *arguments]
    return Child("server", program(command, 30.0))


def test_a_server_is_announced_once_it_accepts_connections_and_nothing_else_is_said(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/socket"
    child = start(address, SERVER, f"{tmp_path}/socket")
    assert child.line() == f"listening on {address}"
    assert launch.accepts(address)
    assert str(child.process_id) in child.last_words()
    child.end()


def test_a_server_that_ends_before_it_listens_is_told_with_its_reason(tmp_path: Path) -> None:
    child = start(f"unix://{tmp_path}/socket", "raise SystemExit('no licence')")
    with pytest.raises(StepFailed, match="no licence"):
        child.line()
    child.end()


def test_a_server_that_ignores_the_time_limit_ends_with_its_parent(tmp_path: Path) -> None:
    server = f"import signal; signal.signal(signal.SIGALRM, signal.SIG_IGN)\n{SERVER}"
    parent = f"""
from tests.bench.peers.test_launch import start
child = start("unix://{tmp_path}/socket", {server!r}, "{tmp_path}/socket")
child.line()
print(child.process_id, flush=True)
"""
    child = Child("parent", program([sys.executable, "-c", parent], 30.0))
    watch = os.pidfd_open(int(child.line()))
    os.waitid(os.P_PID, child.process_id, os.WEXITED | os.WNOWAIT)
    assert select.select([watch], [], [], 10.0)[0]
    os.close(watch)
    child.end()


def test_what_is_missing_is_told_with_how_to_install_it() -> None:
    told = launch.missing({"no-such-server": "server", "sh": "dash"}, {"no_such_module": "client", "os": "python"})
    assert told == "apt-get install server and pip install client"
    assert launch.missing({"sh": "dash"}, {"os": "python"}) == ""


def test_an_address_without_a_port_gets_a_free_one() -> None:
    address = launch.free_address("tcp://127.0.0.1:0")
    host, port = launch.host_and_port(address)
    assert (host, port > 0) == ("127.0.0.1", True)
    assert not launch.accepts(address)
    assert launch.free_address("unix:///tmp/socket") == "unix:///tmp/socket"
