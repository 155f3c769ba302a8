"""The HTTP interface answers to its own names only, so that no page in a browser can ask it under a name of its own."""

from __future__ import annotations

import json
import socket
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from broker.admin.hosts import is_allowed, names_of
from tests.daemon import Daemon

NAMES = frozenset({"broker.example"})
PATIENCE_S = 60.0


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("", True),
        ("localhost", True),
        ("LocalHost:4871", True),
        ("127.0.0.1:4871", True),
        ("[::1]:4871", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("broker.example:4871", True),
        ("broker.example.", True),
        ("evil.example", False),
        ("evil.example:4871", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("broker.example@evil.example", False),
        ("[evil]:1", False),
        (":", True),
    ],
)
def test_a_name_that_somebody_else_could_own_is_not_answered(host: str, allowed: bool) -> None:
    assert is_allowed(host, NAMES) is allowed


def test_the_names_of_a_machine_are_its_own_and_the_one_at_which_it_listens() -> None:
    assert names_of("Node7.cluster:4871") == {"node7.cluster", socket.gethostname().lower()}
    assert "::1" in names_of("[::1]:4871")


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/v1/sessions", "/healthz", "/no/such/path"])
def test_a_page_that_has_rebound_its_name_gets_nothing(path: str) -> None:
    with Daemon("--admin-names", "broker.example,other.example") as daemon:
        with pytest.raises(HTTPError) as caught:
            urlopen(Request(daemon.admin_url + path, headers={"Host": "evil.example"}), timeout=PATIENCE_S)
        with caught.value as response:
            assert response.status == 421
            assert "'evil.example' is not a name of this broker" in json.loads(response.read())["error"]
        request = Request(f"{daemon.admin_url}/healthz", headers={"Host": "other.example:80"})
        with urlopen(request, timeout=PATIENCE_S) as answer:
            assert answer.status == 200
