"""Who may look at the HTTP interface, and that it shows nothing but what is ours and changes nothing."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from broker.security.tokens import add_token, new_token, revoke_token
from broker.transport.tls.contexts import dialler_context
from tests.daemon import Daemon, run


def ask(
    daemon: Daemon,
    path: str = "/api/v1/server",
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    context: ssl.SSLContext | None = None,
) -> tuple[int, str, Mapping[str, str]]:
    scheme, _, place = daemon.admin_url.partition("://")
    port = int(place.rpartition(":")[2])
    assert scheme == ("http" if context is None else "https")
    connection = (
        HTTPConnection("127.0.0.1", port, timeout=10.0)
        if context is None
        else HTTPSConnection("127.0.0.1", port, timeout=10.0, context=context)
    )
    try:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace"), dict(response.getheaders())
    finally:
        connection.close()


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


def test_beyond_loopback_tokens_in_the_clear_are_warned_of(tmp_path: Path, token: tuple[str, str]) -> None:
    flags = ("--tokens", str(tmp_path / "tokens"))
    for admin, warns in (("0.0.0.0:0", True), ("127.0.0.1:0", False)):
        with Daemon(*flags, admin=admin) as daemon:
            assert ("http.in_the_clear" in daemon.errors) == warns
