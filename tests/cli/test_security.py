"""`tensorbus certs` and `tensorbus tokens`, and what of secrets a command shows."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

import clients
from broker.cli.tokens import duration
from broker.errors import InvalidValue
from tests.daemon import Daemon, run


@pytest.mark.usefixtures("certificates")
def test_one_command_makes_all_that_a_job_needs_and_each_rank_gets_in(tmp_path: Path) -> None:
    job = tmp_path / "job"
    status, output, errors = run("certs", "init", str(job), "--ranks", "2", "--name", "monitor", "--days", "3")
    assert (status, errors) == (0, "")
    assert f"tensorbus serve --listen tls://0.0.0.0:4870 --certificates {job}/broker" in output
    with Daemon("--certificates", str(job / "broker"), listen=("tls://0.0.0.0:0",), admin="off") as daemon:
        assert daemon.url.startswith("tls://0.0.0.0:")
        assert "certificates=" not in daemon.url
        url = daemon.url.replace("0.0.0.0", "localhost")
        for name in ("trainer-0", "trainer-1", "monitor"):
            clients.connect(url, tls=job / name).close()
        with pytest.raises(clients.ConnectError, match="is not accepted"):
            clients.connect(url)
        status, output, errors = run(
            "pub", "a/trainer-0", "1", "--ack", "--url", url, environment={"TENSORBUS_TLS": str(job / "trainer-0")}
        )
        assert (status, output, errors) == (0, "1\n", "")


@pytest.mark.usefixtures("certificates")
def test_certificates_are_listed_replaced_and_revoked(tmp_path: Path) -> None:
    job = str(tmp_path / "job")
    run("certs", "init", job)
    assert run("certs", "issue", job, "trainer-0", "--tenant", "team-a")[0] == 0
    assert run("certs", "issue", job, "trainer-0", "--role", "trainer", "--role", "monitor")[0] == 0
    assert run("certs", "revoke", job, "trainer-0")[1].count("revoked trainer-0") == 2
    listed = [json.loads(line) for line in run("certs", "list", job, "--json")[1].splitlines()]
    assert [(one["name"], one["roles"], one["tenant"], bool(one["revoked"])) for one in listed] == [
        ("broker", ["broker"], "", False),
        ("trainer-0", ["trainer"], "team-a", True),
        ("trainer-0", ["trainer", "monitor"], "", True),
    ]
    table = run("certs", "list", job)[1].splitlines()
    assert table[0].split() == ["NAME", "ROLES", "TENANT", "STATE", "EXPIRES", "SERIAL"]
    assert "revoked" in table[2]
    for arguments in (("revoke", job, "trainer-0"), ("init", job), ("list", str(tmp_path / "none"))):
        status, _, errors = run("certs", *arguments)
        assert status == 1
        assert "Traceback" not in errors


def test_a_token_is_printed_once_and_lets_its_owner_in(tmp_path: Path) -> None:
    file = str(tmp_path / "tokens.json")
    status, output, errors = run("tokens", "create", "monitor-0", "--file", file, "--expires", "1d")
    token = output.strip()
    assert status == 0
    assert token not in errors
    number = token.split("_")[1]
    (listed,) = [json.loads(line) for line in run("tokens", "list", "--file", file, "--json")[1].splitlines()]
    assert (listed["id"], listed["name"], listed["roles"], listed["state"]) == (
        number,
        "monitor-0",
        ["monitor"],
        "good",
    )
    assert "hash" not in listed
    assert token.split("_", 2)[2] not in run("tokens", "list", "--file", file)[1]
    with Daemon("--tokens", file, listen=("tcp://0.0.0.0:0",), admin="off") as daemon:
        url = daemon.url.replace("0.0.0.0", "127.0.0.1")
        environment = {"TENSORBUS_TOKEN": token, "TENSORBUS_URL": url}
        assert run("pub", "a/monitor-0", "1", environment=environment)[0] == 0
        assert token.split("_", 2)[2] not in daemon.errors
    assert run("tokens", "revoke", number, "--file", file)[1] == f"revoked {number} of monitor-0\n"
    assert "revoked" in run("tokens", "list", "--file", file)[1]


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("5m", 300), ("12h", 43_200), ("30d", 2_592_000)])
def test_durations_have_a_unit(text: str, expected: int) -> None:
    assert duration(text) == timedelta(seconds=expected)


@pytest.mark.parametrize("text", ["", "5", "d", "-1d", "0h", "1.5h", "1y", "99999999d"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="12h or 30d"):
        duration(text)


@pytest.mark.usefixtures("certificates")
def test_a_brokers_new_certificate_is_one_that_clients_accept(tmp_path: Path) -> None:
    job = tmp_path / "job"
    assert run("certs", "init", str(job), "--host", "broker.example", "--name", "monitor")[0] == 0
    status, output, errors = run("certs", "issue", str(job), "broker", "monitor")
    assert (status, errors) == (0, "")
    assert "dialled at localhost, 127.0.0.1, ::1, broker.example\n" in output
    with Daemon("--certificates", str(job / "broker"), listen=("tls://127.0.0.1:0",), admin="off") as daemon:
        clients.connect(daemon.url, tls=job / "monitor").close()
    listed = [json.loads(line) for line in run("certs", "list", str(job), "--json")[1].splitlines()]
    assert [len(one["hosts"]) for one in listed] == [4, 0, 4, 0]


def test_a_time_beyond_the_calendar_is_refused() -> None:
    assert duration("36500d") == timedelta(days=36_500)
    with pytest.raises(InvalidValue, match="is longer than 36500d"):
        duration("999999w")


def test_a_token_where_it_does_not_belong_is_shown_nowhere(tmp_path: Path) -> None:
    secret = "V2xsLW5v"
    token = f"tb_0123456789ab_{secret}"
    config = tmp_path / "tensorbus.toml"
    config.write_text(f'name = "{token}"\nlisten = ["tcp://127.0.0.1:0"]\n')
    for arguments in (
        ("serve", "--show-config", "--tokens", token),
        ("serve", "--show-config", "--config", str(config)),
        ("serve", "--admin", "off", "--tokens", token),
        ("serve", "--admin", token),
        ("serve", "--listen", f"tcp://{token}@127.0.0.1:0"),
        ("pub", "a", "--url", f"tcp://{token}@127.0.0.1:1"),
        ("pub", "a", "--url", f"tcp://{token}:1"),
    ):
        _, output, errors = run(*arguments)
        assert secret not in output + errors
        assert "tb_0123456789ab_***" in output + errors


def test_the_environments_token_is_no_setting_and_is_not_shown() -> None:
    status, output, errors = run("serve", "--show-config", environment={"TENSORBUS_TOKEN": "tb_01_secret"})
    assert status == 0
    assert "secret" not in output + errors
