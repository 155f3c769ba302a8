"""Files that people name: what is none is refused at once, and what has no end as soon as it is too long."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from broker.config import load
from broker.errors import BrokerError, ConfigError, InvalidValue
from broker.files import check_file, read_file
from broker.limits import TOML_BYTES_MAX
from broker.security.tokens import add_token, new_token, read_tokens
from tests.daemon import run
from tests.security.test_tokens import NOW


def pipe_at(path: Path) -> Path:
    os.mkfifo(path)
    return path


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 200_000)
    check_file(file)
    assert read_file(file, 200_000) == b"x" * 200_000
    with pytest.raises(ValueError, match="has more than 199999 bytes"):
        read_file(file, 199_999)
    link = tmp_path / "link"
    link.symlink_to(file)
    assert read_file(link, 200_000) == b"x" * 200_000
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing", 1)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/dev/zero", "a device"),
        ("/dev/full", "a device"),
        ("/dev/null", "a device"),
        ("/", "a folder"),
        ("pipe", "a pipe"),
    ],
)
def test_what_is_no_file_is_told_so_and_not_waited_for(tmp_path: Path, name: str, told: str) -> None:
    path = pipe_at(tmp_path / name) if name == "pipe" else Path(name)
    for look in (lambda: read_file(path, 10), lambda: check_file(path)):
        with pytest.raises(ValueError, match=f"is {told}, and no file"):
            look()
    _, token = new_token("a", ["a"], "", NOW, None)
    for use in (lambda: read_tokens(path), lambda: add_token(path, token)):
        with pytest.raises(InvalidValue, match=f"it is {told}, and no file"):
            use()


def test_a_socket_is_none(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(ValueError, match="is a socket, and no file"):
            check_file(tmp_path / "socket")


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/full", "pipe"])
def test_the_command_line_says_so(tmp_path: Path, name: str) -> None:
    path = pipe_at(tmp_path / name) if name == "pipe" else name
    for command in (("tokens", "list"), ("tokens", "create", "a"), ("tokens", "revoke", "ab12")):
        status, output, errors = run(*command, "--file", str(path))
        assert (status, output, errors.count("\n")) == (1, "", 1)
        assert "is not a file of tensorbus tokens: it is a" in errors


def test_settings_may_come_through_a_pipe_once_and_are_not_lost_when_they_are_read_again(tmp_path: Path) -> None:
    path = pipe_at(tmp_path / "pipe")
    writer = threading.Thread(target=path.write_text, args=("sessions_max = 7\n",))
    writer.start()
    assert load({}, {}, path).config.sessions_max == 7
    writer.join()
    with pytest.raises(ConfigError, match="it is a pipe, and no file; what was read from it at the start holds"):
        load({}, {}, path, again=True)


def test_settings_have_an_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a device, and no file"):
        load({}, {}, Path("/dev/zero"))
    file = tmp_path / "long.toml"
    file.write_text("#" * (TOML_BYTES_MAX + 1))
    with pytest.raises(BrokerError, match=f"more than {TOML_BYTES_MAX} bytes"):
        load({}, {}, file)
