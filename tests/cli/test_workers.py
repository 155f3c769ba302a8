"""`tensorbus serve --workers`: what cannot be shared is refused at the start, in words that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.cli.workers import admin_of, check_workers
from broker.config import Config, load
from broker.errors import ConfigError, InvalidValue
from broker.limits import WORKERS_MAX
from broker.topics.policy import Declaration
from tests.daemon import run

LOCAL = ("tcp://127.0.0.1:0", "unix:///run/bus.sock", "tls://127.0.0.1:0")


def test_one_worker_is_the_default() -> None:
    assert load({}, {}, None).config.workers == 1
    assert load({}, {"TENSORBUS_WORKERS": "3"}, None).config.workers == 3


def test_what_all_can_accept_at_is_shared() -> None:
    check_workers(Config(listen=LOCAL, workers=WORKERS_MAX))
    check_workers(Config(listen=LOCAL, workers=2, admin="off"))


@pytest.mark.parametrize("address", ["zmq+tcp://127.0.0.1:0", "ucx://127.0.0.1:0", "inproc://x"])
def test_what_cannot_be_shared_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="Listen at tcp://, tls:// or unix:// alone, or serve with --workers 1"):
        check_workers(Config(listen=(LOCAL[0], address), workers=2))


def test_a_malformed_address_is_told_as_ever() -> None:
    with pytest.raises(InvalidValue, match="nonsense"):
        check_workers(Config(listen=("nonsense",), workers=2))


def test_too_many_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"over the limit of {WORKERS_MAX}"):
        check_workers(Config(listen=LOCAL, workers=WORKERS_MAX + 1))


def test_dead_letters_stay_with_their_topics() -> None:
    policies = (Declaration("jobs/#", {"dead_letter": "lost"}, "configuration"),)
    with pytest.raises(ConfigError, match="dead letters of 'jobs/#' go to 'lost'"):
        check_workers(Config(listen=LOCAL, workers=2, topics=policies))
    check_workers(
        Config(listen=LOCAL, workers=2, topics=(Declaration("jobs/#", {"dead_letter": ""}, "configuration"),))
    )


def test_the_ports_of_http_have_to_be_there() -> None:
    check_workers(Config(listen=LOCAL, workers=2, admin="127.0.0.1:65534"))
    with pytest.raises(ConfigError, match="the admin port 65536"):
        check_workers(Config(listen=LOCAL, workers=2, admin="127.0.0.1:65535"))


@pytest.mark.parametrize(
    ("admin", "number", "expected"),
    [
        ("127.0.0.1:4871", 2, "127.0.0.1:4873"),
        ("127.0.0.1:0", 2, "127.0.0.1:0"),
        ("[::1]:80", 1, "[::1]:81"),
        ("off", 2, "off"),
    ],
)
def test_each_worker_has_an_http_interface_of_its_own(admin: str, number: int, expected: str) -> None:
    assert admin_of(admin, number) == expected


def test_a_refusal_is_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    status, output, errors = run(
        "serve", "--listen", f"unix://{path}", "--listen", "zmq+tcp://127.0.0.1:0", "--workers", "2", "--admin", "off"
    )
    assert (status, output) == (1, "")
    assert errors.startswith("tensorbus: setting workers 2: several cannot share zmq+tcp://127.0.0.1:0")
    assert errors.count("\n") == 1
    assert not path.exists()


def test_the_setting_is_shown() -> None:
    status, output, _ = run("serve", "--workers", "4", "--show-config")
    assert status == 0
    assert any(line.split() == ["workers", "4", "flag", "--workers"] for line in output.splitlines())


def test_a_worker_that_cannot_serve_ends_all_with_what_it_has_to_say(tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    # The second worker's port of HTTP would be this one's, which no user may take, or which is taken.
    status, output, errors = run("serve", "--listen", f"unix://{path}", "--workers", "2", "--admin", "203.0.113.1:4871")
    assert (status, output) == (1, "")
    assert "before all workers served" in errors
    assert not path.exists()
