"""`tensorbus topics` as a real process: what holds for each topic, and why."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import clients
from tests.certificates import make_certificates
from tests.daemon import PATIENCE_S, Daemon, run
from tests.holding_back import publish_until_held_back

FILE = """
[[topics]]
filter = "gradients/#"
ring_messages = 2
lane = "bulk"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    file = tmp_path_factory.mktemp("configuration") / "tensorbus.toml"
    file.write_text(FILE, encoding="utf-8")
    with Daemon("--config", str(file), "--ring-bytes", "65536") as daemon:
        with clients.connect(daemon.url, name="trainer-0") as bus:
            bus.declare("gradients/+", overflow="latest", retain=True)
            for number in range(3):
                bus.publish("gradients/0", bytes(number))
            bus.publish("metrics/loss", 0.5)
            bus.flush(PATIENCE_S)
        yield daemon


def topics(daemon: Daemon, *arguments: str) -> tuple[int, str, str]:
    return run("topics", *arguments, "--admin", daemon.admin_url.removeprefix("http://"))


def test_each_topic_is_a_paragraph_with_what_holds_and_why(daemon: Daemon) -> None:
    status, output, errors = topics(daemon)
    assert (status, errors) == (0, "")
    gradients, metrics = output.rstrip("\n").split("\n\n")
    lines = [line.split() for line in gradients.splitlines()]
    assert lines[0] == ["gradients/0"]
    assert gradients.splitlines()[1] == "  published 3 messages, 3 bytes; refused 0; the next sequence is 4"
    assert gradients.splitlines()[2] == (
        "  keeps 2 messages, 3 bytes, from sequence 2; 0 subscriptions, 0 publishers wait"
    )
    assert ["ring_messages", "2", "gradients/#,", "configuration"] in lines
    assert ["lane", "bulk", "gradients/#,", "configuration"] in lines
    assert ["overflow", "latest", "gradients/+,", "declared", "by", "trainer-0"] in lines
    assert ["retain", "true", "gradients/+,", "declared", "by", "trainer-0"] in lines
    assert ["ring_bytes", "65536", "configuration"] in lines
    assert ["max_message_bytes", "-", "default"] in lines
    assert metrics.startswith("metrics/loss\n")


def test_as_json_each_topic_is_a_line(daemon: Daemon) -> None:
    status, output, _ = topics(daemon, "--json")
    gradients, metrics = [json.loads(line) for line in output.splitlines()]
    assert status == 0
    assert (gradients["name"], metrics["name"]) == ("gradients/0", "metrics/loss")
    assert (gradients["retained_messages"], gradients["refused_messages"]) == (2, 0)
    held = {entry.pop("setting"): entry for entry in gradients["policy"]}
    assert held["lane"] == {"value": "bulk", "filter": "gradients/#", "origin": "configuration"}
    assert held["retain"] == {"value": True, "filter": "gradients/+", "origin": "declared by trainer-0"}
    assert held["max_message_bytes"] == {"value": None, "filter": "", "origin": "default"}


def test_a_filter_chooses(daemon: Daemon) -> None:
    assert [json.loads(line)["name"] for line in topics(daemon, "metrics/#", "--json")[1].splitlines()] == [
        "metrics/loss"
    ]
    assert topics(daemon, "no/such/+") == (0, "", "no topic of no/such/+\n")
    assert topics(daemon, "no/such/+", "--json") == (0, "", "")


def test_whoever_holds_publishers_back_is_named(daemon: Daemon) -> None:
    with (
        clients.connect(daemon.url, name="slow-\x1breader") as reader,
        reader.subscribe("held", queue_messages=1),
        clients.connect(daemon.url) as writer,
    ):
        publish_until_held_back(writer, "held")
        output = topics(daemon, "held")[1]
    assert output.splitlines()[2].endswith("1 subscriptions, 1 publishers wait for slow-?reader")


def test_a_filter_that_cannot_be_is_one_line(daemon: Daemon) -> None:
    status, output, errors = topics(daemon, "a//b")
    assert (status, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("tensorbus: topic filter 'a//b': level 2 is empty")


@pytest.mark.parametrize("token", ["a\nb", "\u20ac"])
def test_a_token_that_no_header_can_have_is_one_line_and_not_told(daemon: Daemon, token: str) -> None:
    admin = daemon.admin_url.removeprefix("http://")
    status, output, errors = run("topics", "--admin", admin, environment={"TENSORBUS_TOKEN": token})
    assert (status, output, errors.count("\n")) == (3, "", 1)
    assert "$TENSORBUS_TOKEN is no token" in errors
    assert token not in errors


def test_the_address_may_be_in_the_environment(daemon: Daemon) -> None:
    variables = {"TENSORBUS_ADMIN": daemon.admin_url.removeprefix("http://")}
    assert run("topics", "metrics/#", environment=variables)[1].startswith("metrics/loss\n")


def test_a_proxy_is_not_asked(daemon: Daemon) -> None:
    variables = {"http_proxy": "http://127.0.0.1:9", "TENSORBUS_ADMIN": daemon.admin_url.removeprefix("http://")}
    assert run("topics", "metrics/#", environment=variables)[0] == 0


@pytest.mark.parametrize(
    ("address", "expected", "problem"),
    [
        ("127.0.0.1:1", 3, "cannot connect to http://127.0.0.1:1: Connection refused: is a broker running"),
        ("off", 1, "setting admin (flag --admin) 'off': the broker's HTTP interface is needed"),
        ("4871", 1, "setting admin (flag --admin) '4871': expected host:port"),
    ],
)
def test_without_a_broker_it_is_one_line(address: str, expected: int, problem: str) -> None:
    status, output, errors = run("topics", "--admin", address)
    assert (status, output, errors.count("\n")) == (expected, "", 1)
    assert errors.startswith(f"tensorbus: {problem}")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwhat",
        b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"topics\": 77",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nwhat",
        b"SSH-2.0-server\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{",
    ],
)  # fmt: skip
def test_somebody_else_who_answers_is_named(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        status, output, errors = run("topics", "--admin", f"127.0.0.1:{port}")
        thread.join(PATIENCE_S)
    assert (status, output, errors.count("\n")) == (3, "", 1)
    assert errors.startswith(f"tensorbus: cannot connect to http://127.0.0.1:{port}: what answers there is no broker's")


def test_serve_refuses_a_policy_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "tensorbus.toml"
    file.write_text('[[topics]]\nfilter = "a"\nring_message = 4\n', encoding="utf-8")
    status, _, errors = run("serve", "--config", str(file))
    assert (status, errors.count("\n")) == (1, 1)
    assert "'ring_message': unknown; did you mean ring_messages?" in errors


def test_show_config_shows_policies(tmp_path: Path) -> None:
    file = tmp_path / "tensorbus.toml"
    file.write_text(FILE, encoding="utf-8")
    status, output, _ = run("serve", "--config", str(file), "--show-config")
    assert status == 0
    (line,) = [line for line in output.splitlines() if line.startswith("topics.")]
    assert line.split() == ["topics.gradients/#", "ring_messages=2", "lane=bulk", str(file)]


def test_a_client_cannot_replace_what_the_file_fixes(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        with pytest.raises(clients.PermissionDenied, match="fixed by the broker's configuration"):
            bus.declare("gradients/#", ring_messages=5)
        bus.declare("gradients/other", ring_messages=5)


def test_an_interface_beyond_loopback_is_asked_over_tls_also_from_its_own_host(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path)
    certificates = ("--certificates", str(folder / "broker"))
    listen = ("tls://127.0.0.1:0",)
    with (
        Daemon(*certificates, listen=listen, admin="0.0.0.0:0") as private,
        Daemon(*certificates, listen=listen) as plain,
    ):
        assert private.admin_url.startswith("https://")
        port = private.admin_url.rpartition(":")[2]
        shown = {"TENSORBUS_TLS": str(folder / "broker")}
        status, _, errors = run("topics", "--admin", f"127.0.0.1:{port}", environment=shown)
        assert (status, errors) == (0, "no topics\n")
        status, _, errors = run("topics", "--admin", f"127.0.0.1:{port}")
        assert status == 3
        assert "if it speaks https, name certificates, $TENSORBUS_TLS" in errors
        # With certificates as well, of one that is on loopback alone.
        assert plain.admin_url.startswith("http://")
        status, _, errors = run("topics", "--admin", plain.admin_url.removeprefix("http://"), environment=shown)
        assert (status, errors) == (0, "no topics\n")
