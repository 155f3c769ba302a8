"""Standard streams that are closed, full, or of another encoding: one plain line, and never a traceback.

The processes here are started by the system and not as forks, because a new interpreter is what has to cope with them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import clients
from tests.daemon import PATIENCE_S, ROOT, Daemon, Process


def shell(redirections: str, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, bytes, str]:
    """Runs a command of tensorbus as a shell does; returns its exit status, standard output and standard error."""
    program = f'exec "$0" -m broker "$@" {redirections}'
    done = subprocess.run(
        ["sh", "-c", program, sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stdout, done.stderr.decode()


def said(daemon: Daemon, *values: object) -> None:
    """Has topics keep something to be shown."""
    with clients.connect(daemon.url) as bus:
        for value in values:
            bus.publish("said", value, ack="accepted")


SHOWN = (
    ("sub", "said", "--replay", "latest", "--count", "1", "--url"),
    ("pub", "said/too", "x", "--ack", "--url"),
    ("groups", "--json", "--url"),
    ("top", "--once", "--json", "--interval", "0.05", "--url"),
)


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
@pytest.mark.parametrize("arguments", SHOWN, ids=lambda arguments: arguments[0])
def test_an_output_that_takes_nothing_is_one_line_and_status_1(
    daemon: Daemon, redirection: str, arguments: Sequence[str]
) -> None:
    said(daemon, 1)
    with clients.connect(daemon.url) as bus:
        bus.group("alone", world_size=1)
        status, _, errors = shell(redirection, *arguments, daemon.url)
    problem = "No space left on device" if redirection == ">/dev/full" else "Bad file descriptor"
    assert (status, errors) == (1, f"tensorbus: the input or the output cannot be used: {problem}\n")


def test_a_help_that_nobody_can_read_is_one_line_and_status_1() -> None:
    problem = "the input or the output cannot be used: No space left on device"
    assert shell(">/dev/full", "--help") == (1, b"", f"tensorbus: {problem}\n")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_an_input_that_gives_nothing_is_one_line_and_status_1(daemon: Daemon, flags: Sequence[str]) -> None:
    status, output, errors = shell("<&-", "pub", "a", "-", *flags, "--url", daemon.url)
    problem = "the input or the output cannot be used: Bad file descriptor"
    assert (status, output, errors) == (1, b"", f"tensorbus: {problem}\n")


def test_with_nothing_open_at_all_no_socket_is_taken_for_a_stream(daemon: Daemon) -> None:
    assert shell("<&- >&- 2>&-", "pub", "closed", "x", "--url", daemon.url)[0] == 0
    # What it prints goes to nobody, and not into its connection.
    assert shell("<&- >&- 2>&-", "pub", "closed", "y", "--ack", "--url", daemon.url)[0] == 1
    with clients.connect(daemon.url) as bus, bus.subscribe("closed", replay="all") as subscription:
        assert [subscription.next(PATIENCE_S).value for _ in range(2)] == ["x", "y"]
    assert "Protocol" not in daemon.errors


def connected(url: str, broker: subprocess.Popen[bytes]) -> clients.Client:
    """A client of a broker that cannot say when it is there."""
    while True:
        try:
            return clients.connect(url)
        except clients.ConnectError:
            # It needs the processor to get there.
            with pytest.raises(subprocess.TimeoutExpired):
                broker.wait(0.01)


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "<&- >&- 2>&-"])
def test_a_broker_serves_whoever_reads_what_it_prints(redirection: str, tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/bus.sock"
    program = f'exec "$0" -m broker serve --listen {url} --admin off {redirection}'
    with subprocess.Popen(["sh", "-c", program, sys.executable], cwd=ROOT, stderr=subprocess.PIPE) as broker:
        try:
            with connected(url, broker) as bus:
                assert bus.publish("a", 1, ack="accepted") == 1
        finally:
            broker.terminate()
        errors = broker.stderr.read().decode()
        assert broker.wait(PATIENCE_S) == 0
    assert "Traceback" not in errors
    if not redirection.startswith("<"):
        assert "server.output_closed" in errors


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_what_the_terminal_has_no_letter_for_is_shown_by_number(daemon: Daemon, errors: str) -> None:
    latin = {"PYTHONIOENCODING": f"latin-1:{errors}"}
    with clients.connect(daemon.url) as bus:
        bus.respond("greeting", lambda request: "größer: €")
        status, output, told = shell("", "request", "greeting", "--url", daemon.url, environment=latin)
        assert (status, output, told) == (0, b"gr\xf6\xdfer: \\u20ac\n", "")


def test_a_path_that_is_no_text_is_shown_all_the_same(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="certificates are made with it")
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff j\xc3\xb6b")
    status, output, errors = shell("", "certs", "init", folder, environment={"PYTHONIOENCODING": "utf-8:strict"})
    assert (status, errors) == (0, "")
    assert b"\\udcff j" in output
    assert os.path.exists(f"{folder}/broker/tls.key")


def test_whoever_has_seen_enough_ends_it(daemon: Daemon) -> None:
    said(daemon, *range(3))
    with Process("sub", "said", "--replay", "all", "--url", daemon.url) as process:
        process.read_line()
        process.close_output()
        assert process.wait() == 0
        assert process.errors == ""
