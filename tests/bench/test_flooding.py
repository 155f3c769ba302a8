"""The flood of bench.flood does what it says, against a listener that counts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from tests.daemon import PATIENCE_S, ROOT

CONNECTIONS = 20


@contextmanager
def flooding(listener: socket.socket) -> Iterator[tuple[IO[str], IO[str]]]:
    """The process; gives its standard input and output."""
    numbers = (str(CONNECTIONS), "1000", "0.001")
    command = [sys.executable, "-m", "bench.flooding", f"tcp://127.0.0.1:{listener.getsockname()[1]}", *numbers]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdin, process.stdout
        finally:
            process.kill()


def tell(flood: tuple[IO[str], IO[str]]) -> dict[str, float]:
    """Tells it to begin or to end; returns what it has done."""
    flood[0].write("!")
    flood[0].flush()
    return dict(json.loads(flood[1].readline()))


def test_it_dials_as_many_as_it_is_told_and_anew_those_that_are_closed_and_lets_go_of_all_at_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, flooding(listener) as flood:
        listener.settimeout(PATIENCE_S)
        with ExitStack() as stack:
            begun = tell(flood)
            assert (begun["dialled"], begun["open"]) == (CONNECTIONS, CONNECTIONS)
            there = [stack.enter_context(listener.accept()[0]) for _ in range(CONNECTIONS)]
            # Every second one speaks, in the order in which they were dialled.
            for sock in there[::2]:
                sock.settimeout(PATIENCE_S)
                assert sock.recv(1) == b"\x93"
            for sock in there[:5]:
                sock.close()
            there[:5] = [stack.enter_context(listener.accept()[0]) for _ in range(5)]
            ended = tell(flood)
            assert ended["dialled"] == 5
            assert ended["sent_bytes"] >= CONNECTIONS // 2
            for sock in there:
                sock.settimeout(PATIENCE_S)
                while sock.recv(1024):
                    continue
            assert tell(flood)["dialled"] == CONNECTIONS


def test_who_says_nothing_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener, flooding(listener) as flood:
        listener.settimeout(PATIENCE_S)
        tell(flood)
        with ExitStack() as stack:
            there = [stack.enter_context(listener.accept()[0]) for _ in range(CONNECTIONS)]
            # All of those that speak have done so before it ends.
            for sock in there[::2]:
                sock.settimeout(PATIENCE_S)
                assert sock.recv(1) == b"\x93"
            tell(flood)
            for sock in there[1::2]:
                sock.settimeout(PATIENCE_S)
                assert sock.recv(1024) == b""
