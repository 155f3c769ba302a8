"""`tensorbus serve` as a real process: what it prints, how it ends, and how it says what went wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import click
import pytest

import clients
from broker.cli.main import main
from broker.cli.serve import check_system
from broker.errors import InvalidValue
from broker.version import version
from tests.daemon import PATIENCE_S, ROOT, Daemon, Process, run
from tests.loopback import own_host


def test_serve_prints_a_line_for_each_listener_and_for_the_admin_address(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    with Daemon(listen=("tcp://127.0.0.1:0", f"unix://{path}")) as daemon:
        assert daemon.urls[0].startswith("tcp://127.0.0.1:")
        assert not daemon.urls[0].endswith(":0")
        assert daemon.urls[1] == f"unix://{path}"
        with urlopen(f"{daemon.admin_url}/readyz", timeout=PATIENCE_S) as response:
            assert response.status == 200
        for url in daemon.urls:
            with clients.connect(url) as bus:
                bus.flush()


def test_serve_prints_nothing_for_an_admin_address_that_is_off() -> None:
    with Daemon(admin="off") as daemon:
        assert daemon.process is not None
        assert daemon.terminate() == 0
        assert daemon.process.read_rest() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_0(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    with (
        Daemon(listen=(f"unix://{path}",)) as daemon,
        clients.connect(daemon.url, reconnect_timeout_s=0) as bus,
        bus.subscribe("last") as subscription,
    ):
        bus.publish("last", "words")
        bus.flush()
        assert daemon.process is not None
        daemon.process.signal(number)
        assert daemon.process.wait() == 0
        assert subscription.next(PATIENCE_S).value == "words"
        with pytest.raises(clients.ConnectionClosed, match="the broker is shutting down"):
            subscription.next(PATIENCE_S)
        assert not path.exists()


PRESSED = """
import os, signal, sys
class Pressing:
    def find_spec(name, *_):
        if name == "broker.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Pressing)
from broker.__main__ import main
main()
"""
"""Ctrl-C while a command imports what it is made of."""


def test_ctrl_c_before_a_command_begins_ends_it_without_a_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", PRESSED], cwd=ROOT, capture_output=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_a_second_signal_ends_at_once() -> None:
    with Daemon() as daemon:
        process = daemon.process
        assert process is not None
        # While it is stopped both signals gather, so that it finds them together.
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            process.signal(number)
        assert process.wait() in (-signal.SIGINT, -signal.SIGTERM)


def test_a_daemon_that_was_killed_can_be_started_again_at_its_addresses(tmp_path: Path) -> None:
    host = own_host()
    listen = (f"tcp://{host}:0", f"unix://{tmp_path}/bus.sock")
    with Daemon(listen=listen, admin=f"{host}:0") as daemon:
        urls = daemon.urls
        assert daemon.kill() == -signal.SIGKILL
        daemon.start()
        assert daemon.urls == urls
        with clients.connect(daemon.urls[1]) as bus:
            bus.flush()


def test_serve_raises_a_low_limit_of_descriptors_as_far_as_it_may() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Room for what this test opens: the process may have files open of tests before.
    low = min(soft, len(os.listdir("/proc/self/fd")) + 64)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    try:
        with Daemon() as daemon, urlopen(f"{daemon.admin_url}/metrics", timeout=PATIENCE_S) as response:
            metrics = response.read().decode()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (line,) = (line for line in metrics.splitlines() if line.startswith("process_max_fds "))
    assert float(line.split()[1]) == hard > low


def test_a_port_in_use_is_one_line_and_status_1(daemon: Daemon) -> None:
    status, output, errors = run("serve", "--listen", daemon.url, "--admin", "off")
    assert (status, output) == (1, "")
    advice = "stop what listens there or choose another one"
    assert errors == f"tensorbus: cannot listen on {daemon.url}: the address is in use; {advice}\n"


def test_an_admin_port_in_use_is_one_line_and_nothing_listens(daemon: Daemon) -> None:
    address = daemon.admin_url.removeprefix("http://")
    status, output, errors = run("serve", "--listen", "tcp://127.0.0.1:0", "--admin", address)
    assert (status, output) == (1, "")
    assert errors.startswith(f"tensorbus: cannot listen on http://{address}: the address is in use")
    assert errors.count("\n") == 1


def test_a_default_socket_in_use_is_named(tmp_path: Path) -> None:
    variables = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(tmp_path / "tensorbus.sock"))
        other.listen()
        shown = run("serve", "--show-config", environment=variables)[1]
        status, output, errors = run("serve", "--listen", f"unix://{tmp_path}/tensorbus.sock", environment=variables)
    assert f"unix://{tmp_path}/tensorbus.sock" in shown
    assert (status, output) == (1, "")
    assert errors.startswith(
        f"tensorbus: cannot listen on unix://{tmp_path}/tensorbus.sock: the address is in use; stop"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--listen", "carrier-pigeon://loft"],
            "address 'carrier-pigeon://loft': unknown scheme 'carrier-pigeon'; known",
        ),
        (["--listen", "127.0.0.1:1"], "address '127.0.0.1:1': no scheme; write one like tcp://host:port"),
        (["--admin", "4871"], "setting admin (flag --admin) '4871': expected host:port, or \"off\""),
        (["--sessions-max", "0"], "setting sessions_max (flag --sessions-max) 0: expected an integer above 0"),
        (["--log-level", "loud"], "setting log_level (flag --log-level) 'loud': expected one of debug, info,"),
        (["--config", "/no/such/file"], "config file '/no/such/file': cannot be read: No such file or directory"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line_and_status_1(arguments: list[str], problem: str) -> None:
    status, output, errors = run("serve", *arguments)
    assert (status, output) == (1, "")
    assert errors.startswith(f"tensorbus: {problem}")
    assert errors.count("\n") == 1


def test_an_unknown_setting_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tensorbus.toml"
    file.write_text("sesions_max = 1\n", encoding="utf-8")
    status, _, errors = run("serve", "--config", str(file))
    assert status == 1
    assert errors == f"tensorbus: setting 'sesions_max': unknown, in {file}; did you mean sessions_max?\n"


def test_an_unknown_variable_is_refused() -> None:
    status, _, errors = run("serve", environment={"TENSORBUS_SESION_MAX": "1"})
    assert (status, errors.count("\n")) == (1, 1)
    assert "'TENSORBUS_SESION_MAX': unknown, in the environment; did you mean sessions_max?" in errors


def test_show_config_tells_where_each_value_is_from(tmp_path: Path) -> None:
    file = tmp_path / "tensorbus.toml"
    file.write_text('ring_bytes = "8MiB"\nname = "file"\n', encoding="utf-8")
    arguments = [
        "--config",
        str(file),
        "--listen",
        "tcp://127.0.0.1:1",
        "--listen",
        "tcp://127.0.0.1:2",
        "--show-config",
    ]
    status, output, _ = run("serve", *arguments, environment={"TENSORBUS_ADMIN": "off", "TENSORBUS_NAME": "variable"})
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in output.splitlines()}
    assert status == 0
    assert rows["SETTING"] == ["VALUE", "FROM"]
    assert rows["listen"] == ["tcp://127.0.0.1:1,tcp://127.0.0.1:2", "flag --listen"]
    assert rows["admin"] == ["off", "TENSORBUS_ADMIN"]
    assert rows["name"] == ["variable", "TENSORBUS_NAME"]
    assert rows["ring_bytes"] == ["8MiB", str(file)]
    assert rows["metrics_topic_labels"] == ["false", "default"]
    output = run("serve", "--show-config", "--json", environment={"TENSORBUS_ADMIN": "off"})[1]
    described = [json.loads(line) for line in output.splitlines()]
    assert {"setting": "admin", "value": "off", "from": "TENSORBUS_ADMIN"} in described


def test_where_it_listens_is_told_as_json() -> None:
    with Process("serve", "--json", "--listen", "tcp://127.0.0.1:0", "--admin", "127.0.0.1:0") as broker:
        assert json.loads(broker.read_line())["listening"].startswith("tcp://127.0.0.1:")
        assert json.loads(broker.read_line())["admin"].startswith("http://127.0.0.1:")


def test_an_event_is_one_line_of_the_log_at_its_level() -> None:
    with Daemon("--log-level", "info") as daemon:
        with clients.connect(daemon.url, name="logged") as bus:
            bus.flush()
        daemon.terminate()
        told = [line for line in daemon.errors.splitlines() if "logged" in line]
    assert len(told) == 1
    assert " INFO broker.server session.closed " in told[0]
    with Daemon("--log-level", "error") as daemon:
        with clients.connect(daemon.url, name="logged") as bus:
            bus.flush()
        daemon.terminate()
        assert daemon.errors == ""


@pytest.mark.parametrize(
    "arguments",
    [["unknown"], ["serve", "--no-such-flag"], ["pub"], ["sub", "a", "--json", "--raw"], ["sub", "a", "--count", "0"]],
)
def test_a_wrong_command_line_is_status_2_with_the_usage(arguments: list[str]) -> None:
    status, output, errors = run(*arguments)
    assert (status, output) == (2, "")
    assert "Usage: tensorbus" in errors


def test_the_version_is_told() -> None:
    status, output, errors = run("--version")
    assert (status, output, errors) == (0, f"tensorbus {version()}\n", "")


def test_without_proc_the_daemon_says_what_to_do(tmp_path: Path) -> None:
    check_system()
    with pytest.raises(InvalidValue, match="mount -t proc"):
        check_system(tmp_path)


LARGE = {
    "numpy", "aiohttp", "msgspec", "msgpack", "uvloop", "rich", "zmq", "ssl", "asyncio", "cryptography",
    "multiprocessing", "prometheus_client", "opentelemetry", "clients", "broker.server",
    "broker.protocol", "broker.state",
}  # fmt: skip
"""What no help needs: together it would take longer to import than all that a person has the patience for."""


def commands(command: click.Command, *names: str) -> Iterator[tuple[str, ...]]:
    """Every command and subcommand, by its names."""
    yield names
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, *names, name)


def test_no_help_imports_anything_large() -> None:
    program = "import sys; from broker.cli.main import main\n"
    program += "for names in sys.argv[1:]: main([*names.split(), '--help'], standalone_mode=False)\n"
    program += f"print('large:', *({LARGE!r} & sys.modules.keys()))"
    asked = [" ".join(names) for names in commands(main)]
    done = subprocess.run([sys.executable, "-c", program, *asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("Usage: ") == len(asked) > 25
    assert done.stdout.endswith("\nlarge:\n")


def test_every_command_that_prints_can_print_json() -> None:
    for names in commands(main):
        command: click.Command = main
        for name in names:
            assert isinstance(command, click.Group)
            command = command.commands[name]
        if not isinstance(command, click.Group):
            assert "--json" in {flag for parameter in command.params for flag in parameter.opts}, names


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str) -> None:
    status, output, _ = run("completion", shell)
    assert status == 0
    assert "_TENSORBUS_COMPLETE" in output
    described = json.loads(run("completion", shell, "--json")[1])
    assert (described["shell"], described["script"]) == (shell, output.removesuffix("\n"))


def test_commands_and_contexts_are_completed(tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    for name in ("prod", "probe", "lab"):
        assert run("context", "add", name, "tcp://there:1", environment=home)[0] == 0

    def completed(words: str, number: int) -> list[str]:
        asked = {"_TENSORBUS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        return run(environment={**home, **asked})[1].split()

    assert completed("tensorbus re", 1) == ["plain,record", "plain,replay", "plain,request"]
    assert completed("tensorbus stuck --context pro", 3) == ["plain,probe", "plain,prod"]


def test_the_help_lists_every_command_once_in_its_section() -> None:
    status, output, _ = run("--help")
    assert status == 0
    sections = [line for line in output.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sections == ["Options:", "Run:", "Messages:", "See:", "Keep:", "Let in:", "Set up:"]
    listed = [line.split()[0] for line in output.splitlines() if line.startswith("  ") and line[2].islower()]
    assert sorted(listed) == sorted(main.commands)
