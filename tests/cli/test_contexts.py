"""Named contexts: a name in place of a broker's address, taken whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from broker.contexts import Context, Contexts, check, choose, file_of, read, write
from broker.errors import ConfigError, InvalidValue
from tests.daemon import Daemon, run

PROD = Context("tcp://prod:1", "prod:2", "secret")
BOTH = Contexts("prod", {"prod": PROD, "lab": Context("tcp://lab:1")})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an authority, with a broker's certificate and one of `monitor`."""
    pytest.importorskip("cryptography", reason="certificates are made with it")
    folder = tmp_path_factory.mktemp("authority") / "pki"
    status, output, errors = run("certs", "init", str(folder), "--name", "monitor", "--json")
    assert (status, errors) == (0, "")
    assert [json.loads(line)["name"] for line in output.splitlines()] == ["broker", "monitor"]
    return folder


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_the_flag_wins_over_the_environment_and_that_over_the_one_in_use() -> None:
    assert choose(BOTH, "lab", {"TENSORBUS_URL": "tcp://x:1", "TENSORBUS_CONTEXT": "prod"}) == BOTH.contexts["lab"]
    assert choose(BOTH, None, {"TENSORBUS_URL": "tcp://x:1", "TENSORBUS_CONTEXT": "prod"}) is None
    assert choose(BOTH, None, {"TENSORBUS_CONTEXT": "lab"}) == BOTH.contexts["lab"]
    assert choose(BOTH, None, {}) == PROD
    assert choose(Contexts(), None, {}) is None


def test_an_unknown_name_tells_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"context \(flag --context\) 'x': unknown; there are lab, prod"):
        choose(BOTH, "x", {})


def test_what_is_kept_is_read_again_and_only_its_owner_may(tmp_path: Path) -> None:
    file = file_of({"XDG_CONFIG_HOME": str(tmp_path)})
    odd = Context("tcp://a:1", token='quotes " and \\ and ü')
    write(file, Contexts("odd", {"odd": odd, "prod": PROD}))
    assert read(file) == Contexts("odd", {"odd": odd, "prod": PROD})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["contexts.toml"]
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="has a token, and others can read it"):
        read(file)


@pytest.mark.parametrize("text", ["current = 1", "[contexts.a]\nadress = 'x'", "= =", "[contexts.a]\n"])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "contexts.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(file)


@pytest.mark.parametrize("home", ["/dev/null", "/nonexistent"])
def test_who_has_no_home_has_no_contexts(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(file_of({"HOME": home})) == Contexts()
    # A user that the system does not know.
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    assert file_of({}) == Path("/.config/tensorbus/contexts.toml")


def test_a_file_of_contexts_that_is_broken_harms_nobody_who_names_a_broker(
    daemon: Daemon, home: dict[str, str]
) -> None:
    file = file_of(home)
    file.parent.mkdir()
    file.write_text("= =")
    status, _, errors = run("pub", "a", "x", environment=home)
    assert (status, errors.count("\n")) == (1, 1)
    assert "cannot be read" in errors
    assert run("pub", "a", "x", "--url", daemon.url, environment=home) == (0, "", "")
    assert run("pub", "a", "x", environment={**home, "TENSORBUS_URL": daemon.url}) == (0, "", "")


@pytest.mark.parametrize("name", ["", "a b", "a.b", "x" * 65, "ü", "../a"])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(InvalidValue, match="is no name"):
        check(name, PROD)


def test_a_token_that_cannot_be_is_not_told() -> None:
    with pytest.raises(InvalidValue) as error:
        check("a", Context("tcp://a:1", token="sec\nret"))
    assert "sec" not in str(error.value)


def test_a_command_talks_to_the_context_that_is_in_use_or_named(daemon: Daemon, home: dict[str, str]) -> None:
    admin = daemon.admin_url.removeprefix("http://")
    assert run("context", "add", "lab", daemon.url, "--admin", admin, environment=home) == (0, "", "")
    assert run("context", "add", "gone", "tcp://127.0.0.1:1", environment=home)[0] == 0
    assert run("context", "use", "gone", environment=home)[0] == 0
    assert run("stuck", environment=home)[0] == 3
    assert run("stuck", "--context", "lab", environment=home)[:2] == (0, "nothing is stuck in 0 groups\n")
    assert run("stuck", environment={**home, "TENSORBUS_CONTEXT": "lab"})[0] == 0
    assert run("stuck", daemon.url, environment=home)[0] == 0
    assert run("topics", "--context", "lab", environment=home)[0] == 0
    status, _, errors = run("stuck", daemon.url, "--context", "lab", environment=home)
    assert (status, "exclude each other" in errors) == (2, True)


def test_contexts_are_listed_without_their_tokens_used_and_removed(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    token = ("--token-file", str(tmp_path / "token"))
    assert run("context", "add", "prod", "tcp://prod:1", *token, environment=home)[0] == 0
    assert run("context", "add", "lab", "tcp://lab:1", environment=home)[0] == 0
    assert run("context", "use", "prod", environment=home)[0] == 0
    output = run("context", "list", environment=home)[1]
    assert "secret" not in output
    assert [line.split() for line in output.splitlines()] == [
        ["NAME", "URL", "ADMIN", "TOKEN", "TLS"],
        ["lab", "tcp://lab:1", "-", "-", "-"],
        ["*", "prod", "tcp://prod:1", "-", str(tmp_path / "token"), "-"],
    ]
    described = [json.loads(line) for line in run("context", "list", "--json", environment=home)[1].splitlines()]
    assert [(each["name"], each["token"], each["current"]) for each in described] == [
        ("lab", False, False), ("prod", True, True),
    ]  # fmt: skip
    status, _, errors = run("context", "add", "lab", "tcp://other:1", environment=home)
    assert (status, "--replace takes its place" in errors) == (1, True)
    assert run("context", "remove", "prod", environment=home)[0] == 0
    assert run("context", "use", "prod", environment=home)[0] == 1
    assert run("context", "use", "--none", environment=home)[0] == 0
    assert read(file_of(home)) == Contexts("", {"lab": Context("tcp://lab:1")})


def test_what_is_changed_is_told_as_json_without_its_token(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")

    def told(*arguments: str) -> object:
        status, output, errors = run("context", *arguments, "--json", environment=home)
        assert (status, errors) == (0, "")
        assert "secret" not in output
        return json.loads(output)

    file = str(tmp_path / "token")
    made = {"name": "lab", "url": "tcp://lab:1", "admin": "", "token": True, "token_file": file, "tls": ""}
    assert told("add", "lab", "tcp://lab:1", "--token-file", file) == {**made, "current": False}
    assert told("use", "lab") == {"current": "lab"}
    assert told("use", "--none") == {"current": ""}
    assert told("remove", "lab") == {"removed": "lab"}


def test_a_token_is_read_when_it_is_used_so_that_it_can_be_renewed_in_its_file(
    home: dict[str, str], tmp_path: Path
) -> None:
    tokens, file = tmp_path / "tokens.json", tmp_path / "token"
    made = [run("tokens", "create", f"monitor-{number}", "--file", str(tokens))[1] for number in range(2)]
    file.write_text("nothing that a broker knows")
    with Daemon("--tokens", str(tokens), "--certificates", "off", listen=("tcp://127.0.0.1:0",)) as daemon:
        assert run("context", "add", "bus", daemon.url, "--token-file", str(file), environment=home)[0] == 0
        assert run("stuck", "--context", "bus", environment=home)[0] == 3
        for token in made:
            file.write_text(token)
            assert run("stuck", "--context", "bus", environment=home)[0] == 0
        file.unlink()
        status, _, errors = run("stuck", "--context", "bus", environment=home)
    assert (status, errors) == (1, f"tensorbus: token file {str(file)!r}: cannot be read: No such file or directory\n")
    assert made[0].strip() not in file_of(home).read_text()


def test_a_token_that_comes_through_a_pipe_is_kept(home: dict[str, str]) -> None:
    added = run("context", "add", "bus", "tcp://bus:1", "--token-file", "-", stdin=b"secret\n", environment=home)
    assert added == (0, "", "")
    assert read(file_of(home)).contexts["bus"] == Context("tcp://bus:1", token="secret")
    assert run("context", "list", environment=home)[1].split()[-2:] == ["kept", "-"]


@pytest.mark.parametrize("content", [b"", b" \n", b"two\nlines\n", b"a" * 5000, b"\xff"])
def test_a_file_that_has_no_token_is_refused_at_once(home: dict[str, str], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    status, output, errors = run(
        "context", "add", "bus", "tcp://bus:1", "--token-file", str(tmp_path / "token"), environment=home
    )
    assert (status, output) == (1, "")
    assert errors.startswith("tensorbus: token file ")
    assert "two" not in errors
    assert not file_of(home).exists()


def test_a_context_has_the_certificates_with_which_its_broker_is_reached(
    home: dict[str, str], tmp_path: Path, authority: Path
) -> None:
    mine = authority / "monitor"
    files = ("--ca", str(mine / "ca.crt"), "--cert", str(mine / "tls.crt"), "--key", str(mine / "tls.key"))
    with Daemon("--certificates", str(authority / "broker"), listen=("tls://127.0.0.1:0",)) as daemon:
        assert run("context", "add", "files", daemon.url, *files, environment=home) == (0, "", "")
        assert run("context", "add", "folder", daemon.url, "--tls", str(mine), environment=home) == (0, "", "")
        assert run("context", "add", "nothing", daemon.url, environment=home) == (0, "", "")
        for name, status in (("files", 0), ("folder", 0), ("nothing", 3)):
            done = run("stuck", "--context", name, environment=home)
            assert done[0] == status, done
    kept = read(file_of(home)).contexts
    linked = Path(kept["files"].tls)
    assert linked.parent.parent == file_of(home).parent
    assert stat.S_IMODE(linked.stat().st_mode) == 0o700
    assert (linked / "tls.key").readlink() == mine / "tls.key"
    assert run("context", "add", "files", "tcp://plain:1", "--replace", environment=home)[0] == 0
    assert run("context", "remove", "folder", environment=home)[0] == 0
    assert not linked.exists()
    assert (mine / "tls.key").exists()


@pytest.mark.parametrize(
    ("url", "options", "status", "problem"),
    [
        ("tcp://a:1", ["--ca", "monitor/ca.crt"], 1, "is not at tls://, so it has no use for certificates"),
        ("tls://a:1", ["--cert", "monitor/tls.crt"], 2, "--cert and --key belong together, and need --ca"),
        ("tls://a:1", ["--cert", "monitor/tls.crt", "--key", "monitor/tls.key"], 2, "and need --ca"),
        ("tls://a:1", ["--tls", "monitor", "--ca", "monitor/ca.crt"], 2, "they exclude each other"),
        ("tls://a:1", ["--ca", "monitor/none.crt"], 2, "does not exist"),
        ("tls://a:1", ["--ca", "monitor/tls.key"], 1, "ca.crt cannot be used"),
        (
            "tls://a:1",
            ["--ca", "ca.crt", "--cert", "monitor/tls.crt", "--key", "broker/tls.key"],
            1,
            "tls.key is not the key of tls.crt",
        ),
    ],
)
def test_certificates_that_cannot_be_used_are_refused_at_once_and_nothing_is_kept(
    home: dict[str, str], authority: Path, url: str, options: list[str], status: int, problem: str
) -> None:
    at = [each if each.startswith("--") else str(authority / each) for each in options]
    done = run("context", "add", "prod", url, *at, environment=home)
    assert done[0] == status
    assert problem in " ".join(done[2].split())
    assert not file_of(home).exists()
    folders = file_of(home).parent / "contexts"
    assert not folders.exists() or not any(folders.iterdir())
