"""Who may look at the HTTP interface, and that it shows nothing but what is ours and changes nothing."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any

import pytest

import clients
from broker.security.tokens import add_token, new_token, revoke_token
from broker.transport.tls.contexts import dialler_context
from clients.connection.views import view
from tests.daemon import PATIENCE_S, Daemon, run


def ask(
    daemon: Daemon,
    path: str = "/api/v1/server",
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    context: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> tuple[int, str, Mapping[str, str]]:
    scheme, _, place = daemon.admin_url.partition("://")
    port = int(place.rpartition(":")[2])
    assert scheme == ("http" if context is None else "https")
    connection = (
        HTTPConnection(host, port, timeout=PATIENCE_S)
        if context is None
        else HTTPSConnection(host, port, timeout=PATIENCE_S, context=context)
    )
    try:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace"), dict(response.getheaders())
    finally:
        connection.close()


def reload(daemon: Daemon, told: str) -> None:
    """Has the daemon read everything again, and waits until its log tells of it."""
    assert daemon.process is not None
    daemon.process.signal(signal.SIGHUP)
    deadline_s = time.monotonic() + PATIENCE_S
    while told not in daemon.errors:
        assert time.monotonic() < deadline_s, daemon.errors
        time.sleep(0.01)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()}


@pytest.fixture
def token(tmp_path: Path) -> tuple[str, str]:
    text, token = new_token("monitor-0", ["monitor"], "", datetime.now(UTC), None)
    add_token(tmp_path / "tokens", token)
    return text, token.id


def test_beyond_loopback_strangers_are_not_let_in_and_it_does_not_start() -> None:
    status, output, errors = run("serve", "--listen", "tcp://127.0.0.1:0", "--admin", "0.0.0.0:0")
    assert (status, output) == (1, "")
    assert "strangers could look at it there" in errors
    assert "--insecure" in errors


def test_beyond_loopback_a_token_is_asked_for(tmp_path: Path, token: tuple[str, str]) -> None:
    audit = tmp_path / "audit"
    flags = ("--tokens", str(tmp_path / "tokens"), "--audit", str(audit))
    with Daemon(*flags, admin="0.0.0.0:0") as daemon:
        for path in ("/", "/metrics", "/api/v1/server", "/api/v1/sessions", "/api/v1/events", "/no/such/path"):
            status, body, headers = ask(daemon, path)
            assert status == 401
            assert "does not prove who they are" in json.loads(body)["error"]
            assert headers["WWW-Authenticate"].startswith("Basic ")
        for path in ("/healthz", "/readyz"):
            assert ask(daemon, path)[0] == 200
        for headers in (bearer(token[0]), basic(token[0])):
            assert ask(daemon, headers=headers)[0] == 200
        wrong = (bearer("tb_00_wrong"), basic("wrong"), {"Authorization": "Basic ###"}, {"Authorization": "Digest a"})
        for headers in wrong:
            assert ask(daemon, headers=headers)[0] == 401
        assert token[0] not in daemon.errors
        assert "tb_00_wrong" not in daemon.errors + audit.read_text()
        assert daemon.errors.count("http.refused") == 6 + len(wrong)
        assert sum(json.loads(line)["event"] == "refused" for line in audit.read_text().splitlines()) == 6 + len(wrong)


def test_with_certificates_it_speaks_tls_and_a_certificate_is_enough(
    certificates: Path, tmp_path: Path, token: tuple[str, str]
) -> None:
    anybody = tmp_path / "anybody"
    anybody.mkdir()
    (anybody / "ca.crt").write_bytes((certificates / "ca.crt").read_bytes())
    flags = ("--certificates", str(certificates / "broker"), "--tokens", str(tmp_path / "tokens"))
    with Daemon(*flags, admin="0.0.0.0:0") as daemon:
        assert ask(daemon, context=dialler_context(str(certificates / "broker")))[0] == 200
        status, body, _ = ask(daemon, context=dialler_context(str(certificates / "trainer-0")))
        assert status == 403, "a trainer may not see what the broker knows"
        assert "admin 'server'" in json.loads(body)["error"]
        stranger = dialler_context(str(anybody))
        assert ask(daemon, context=stranger)[0] == 401
        assert ask(daemon, headers=bearer(token[0]), context=stranger)[0] == 200


@pytest.mark.usefixtures("certificates")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"], ids=["without a name", "with a name"])
def test_an_authority_that_was_replaced_is_not_trusted_after_a_reload(tmp_path: Path, host: str) -> None:
    from broker.security.authority import BROKER, LOCAL_HOSTS, Authority

    for name in ("old", "new"):
        authority = Authority.create(tmp_path / name)
        authority.issue(BROKER, hosts=LOCAL_HOSTS)
        authority.issue("monitor-0", ["monitor"])
        authority.issue("monitor-1", ["monitor"])
    served = tmp_path / "served"
    shutil.copytree(tmp_path / "old" / BROKER, served)
    (served / "ca.crl").unlink()
    old, new = (str(tmp_path / name / "monitor-0") for name in ("old", "new"))
    with Daemon("--certificates", str(served), admin="0.0.0.0:0") as daemon:
        assert ask(daemon, context=dialler_context(old), host=host)[0] == 200
        with pytest.raises(OSError, match=r"(?i)verify failed"):
            ask(daemon, context=dialler_context(new), host=host)
        # Its own certificate is of the new authority, and so is whom it trusts; a list of revocations comes with it.
        revoked = authority.revoke("monitor-1")
        shutil.copytree(tmp_path / "new" / BROKER, served, dirs_exist_ok=True)
        reload(daemon, "credentials.reloaded what='certificates of https")
        assert ask(daemon, context=dialler_context(new), host=host)[0] == 200
        # Who still has a certificate of the old one, and trusts the new one: a thief of the old key.
        for stolen in (Path(old), tmp_path / "new" / revoked[0].name):
            shutil.copy(Path(new) / "ca.crt", stolen / "ca.crt")
            with pytest.raises(OSError, match=r"(?i)alert|reset|closed"):
                ask(daemon, context=dialler_context(str(stolen)), host=host)
        assert ask(daemon, context=dialler_context(new), host=host)[0] == 200
        (served / "ca.crl").unlink()
        reload(daemon, "ca.crl is gone")
        with pytest.raises(OSError, match=r"(?i)alert|reset|closed"):
            ask(daemon, context=dialler_context(str(tmp_path / "new" / "monitor-1")), host=host)


def test_a_revoked_token_is_not_let_in_any_more(tmp_path: Path, token: tuple[str, str]) -> None:
    revoke_token(tmp_path / "tokens", token[1])
    with Daemon("--tokens", str(tmp_path / "tokens"), admin="0.0.0.0:0") as daemon:
        status, body, _ = ask(daemon, headers=bearer(token[0]))
        assert status == 401
        assert "was revoked" in body


def test_insecure_lets_everybody_look() -> None:
    with Daemon("--insecure", admin="0.0.0.0:0") as daemon:
        assert ask(daemon)[0] == 200


@pytest.fixture(scope="module")
def daemon() -> object:
    with Daemon() as started:
        yield started


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/api/v1/server", "/api/v1/topics", "/api/v1/groups"])
def test_nothing_is_changed(daemon: Daemon, method: str, path: str) -> None:
    assert ask(daemon, path, method=method)[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/dashboard.html",
        "/static/../admin.py",
        "/admin.py",
        "//etc/passwd",
        "/api/v1/../../../etc/passwd",
        "/.git/config",
        "/%00",
    ],
)
def test_no_file_is_served_that_is_not_ours(daemon: Daemon, path: str) -> None:
    status, body, _ = ask(daemon, path)
    assert status in (400, 404)
    assert "root:" not in body
    assert "import" not in body


def test_a_token_that_is_shown_on_loopback_has_to_be_right(tmp_path: Path, token: tuple[str, str]) -> None:
    with Daemon("--tokens", str(tmp_path / "tokens")) as daemon:
        assert ask(daemon)[0] == 200
        assert ask(daemon, headers=bearer(token[0]))[0] == 200
        assert ask(daemon, headers=bearer("tb_00_wrong"))[0] == 401


def test_a_member_of_a_tenant_is_not_shown_what_is_about_all_tenants(tmp_path: Path) -> None:
    text, token = new_token("monitor-0", ["monitor"], "blue", datetime.now(UTC), None)
    add_token(tmp_path / "tokens", token)
    with Daemon("--tokens", str(tmp_path / "tokens"), admin="0.0.0.0:0") as daemon:
        status, body, _ = ask(daemon, "/api/v1/sessions", bearer(text))
        assert status == 403
        assert "belongs to 'blue'" in json.loads(body)["error"]


PERMISSIONS = """
[permissions.roles.looker]
allow = { admin = ["sessions"] }
[permissions.roles.overseer]
allow = { admin = ["server", "sessions", "topics", "groups"], subscribe = ["open/#"] }
deny = { subscribe = ["open/secret"] }
"""


def known(tmp_path: Path, *roles: str) -> str:
    """A new token of somebody with some roles."""
    text, token = new_token("-".join(roles), list(roles), "", datetime.now(UTC), None)
    add_token(tmp_path / "tokens", token)
    return text


def guarded(tmp_path: Path, admin: str = "0.0.0.0:0") -> Daemon:
    config = tmp_path / "config.toml"
    config.write_text(PERMISSIONS)
    return Daemon("--tokens", str(tmp_path / "tokens"), "--config", str(config), admin=admin)


def test_the_tap_is_for_those_who_may_subscribe_and_events_for_those_who_may_see_all(tmp_path: Path) -> None:
    looker, overseer = known(tmp_path, "looker"), known(tmp_path, "overseer")
    with guarded(tmp_path) as daemon:
        for path, text, words in (
            ("/api/v1/tap?topic=open/a", looker, "subscribe 'open/a': not allowed"),
            ("/api/v1/tap?topic=other", overseer, "it may subscribe open/#"),
            ("/api/v1/tap?topic=open/secret", overseer, "but not open/secret"),
            ("/api/v1/events", looker, "admin 'server': not allowed"),
        ):
            status, body, _ = ask(daemon, path, bearer(text))
            assert (status, words in json.loads(body)["error"]) == (403, True), body
        assert ask(daemon, "/api/v1/sessions", bearer(looker))[0] == 200
        for path in ("/api/v1/tap?topic=open/a", "/api/v1/events"):
            with streamed(daemon, path, overseer) as response:
                assert response.status == 200
                assert response.readline().startswith(b"data: ")


@contextmanager
def streamed(daemon: Daemon, path: str, token: str) -> Iterator[HTTPResponse]:
    connection = HTTPConnection("127.0.0.1", int(daemon.admin_url.rpartition(":")[2]), timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers=bearer(token))
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/api/v1/tap?topic=open/a", "/api/v1/events"])
def test_a_stream_ends_when_its_token_is_revoked(tmp_path: Path, path: str) -> None:
    text = known(tmp_path, "overseer")
    with guarded(tmp_path) as daemon, streamed(daemon, path, text) as response:
        assert response.readline().startswith(b"data: ")
        revoke_token(tmp_path / "tokens", text.split("_")[1])
        assert daemon.process is not None
        daemon.process.signal(signal.SIGHUP)
        # Without an end the read runs into the connection's limit and raises.
        while response.readline():
            pass


def test_on_loopback_with_permissions_a_stranger_sees_everything_but_what_was_published(tmp_path: Path) -> None:
    overseer = known(tmp_path, "overseer")
    with guarded(tmp_path, "127.0.0.1:0") as daemon:
        status, body, _ = ask(daemon, "/api/v1/tap?topic=open/a")
        assert status == 403
        assert "show a token that may" in json.loads(body)["error"]
        for path in ("/api/v1/server", "/api/v1/sessions", "/api/v1/topics", "/api/v1/groups"):
            assert ask(daemon, path)[0] == 200
        with streamed(daemon, "/api/v1/tap?topic=open/a", overseer) as response:
            assert response.status == 200


def test_the_last_messages_of_members_are_for_those_who_may_subscribe(tmp_path: Path) -> None:
    overseer, admin = known(tmp_path, "overseer"), known(tmp_path, "admin")
    with guarded(tmp_path) as daemon, clients.connect(daemon.url, token=admin) as bus:
        bus.group("dp", world_size=1)
        for topic, read in (("open/a", True), ("open/secret", False)):
            bus.publish(topic, topic)
            bus.flush()
            for path in ("/api/v1/groups", "/api/v1/events"):
                assert last_topics(daemon, path, admin) == [topic]
                assert last_topics(daemon, path, overseer) == ([topic] if read else [])
            for text, names in ((admin, [topic]), (overseer, [topic] if read else [])):
                with clients.connect(daemon.url, token=text) as other:
                    assert named(view(other, "groups")) == names


def last_topics(daemon: Daemon, path: str, token: str) -> list[str]:
    with streamed(daemon, path, token) as response:
        if path.endswith("events"):
            # What was looked at before, what was being looked at, and what is there now.
            lines = [line for _ in range(6) if (line := response.readline()).startswith(b"data: ")]
            assert len(lines) == 3
            return named(json.loads(lines[-1].removeprefix(b"data: "))["groups"])
        return named(json.loads(response.read())["groups"])


def named(groups: list[dict[str, Any]]) -> list[str]:
    """The topics of the last messages that are told."""
    (group,) = groups
    return [last["topic"] for member in group["members"] if (last := member["last_message"])]


def test_beyond_loopback_tokens_in_the_clear_are_warned_of(tmp_path: Path, token: tuple[str, str]) -> None:
    flags = ("--tokens", str(tmp_path / "tokens"))
    for admin, warns in (("0.0.0.0:0", True), ("127.0.0.1:0", False)):
        with Daemon(*flags, admin=admin) as daemon:
            assert ("http.in_the_clear" in daemon.errors) == warns
