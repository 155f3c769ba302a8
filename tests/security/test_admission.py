"""Who gets in, and as whom."""

from __future__ import annotations

import os
import pwd
from datetime import UTC, datetime

import pytest

from broker.errors import ConfigError, LimitExceeded, PermissionDenied
from broker.limits import USERS_MAX
from broker.security.admission import admit, identity_of_user, read_users
from broker.security.identity import ANYBODY, Identity
from broker.security.tokens import Tokens, new_token

OWN = 12_345
CERTIFIED = Identity("trainer-3", ("trainer",), "", "certificate", "01")


def test_the_brokers_own_user_and_root_are_admins() -> None:
    users = read_users((), OWN)
    assert identity_of_user(users, OWN) == Identity("12345", ("admin",), "", "unix")
    assert identity_of_user(users, 0) == Identity("root", ("admin",), "", "unix")


def test_other_users_are_let_in_by_name_or_number_with_their_roles() -> None:
    nobody = pwd.getpwnam("nobody")
    users = read_users(("nobody=monitor", "4242=trainer+monitor@team-a"), OWN)
    assert identity_of_user(users, nobody.pw_uid) == Identity("nobody", ("monitor",), "", "unix")
    assert identity_of_user(users, 4242) == Identity("4242", ("trainer", "monitor"), "team-a", "unix")


def test_a_user_who_is_not_named_is_told_what_to_do() -> None:
    with pytest.raises(PermissionDenied, match="--users 4242=ROLE"):
        identity_of_user(read_users((), OWN), 4242)


def test_nobody_makes_the_brokers_own_user_less_than_an_admin() -> None:
    assert read_users((f"{OWN}=monitor",), OWN)[OWN].roles == ("admin",)


@pytest.mark.parametrize(
    "text", ["nobody", "nobody=", "=trainer", "nobody=a+", "nobody=a@", "root=admin@", "no-such-user-here=trainer"]
)
def test_a_malformed_user_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="USER=ROLE"):
        read_users((text,), os.getuid())


def test_users_are_bounded() -> None:
    with pytest.raises(LimitExceeded, match="users_max"):
        read_users(("1=a",) * (USERS_MAX + 1), OWN)


def token_of(name: str) -> tuple[str, Tokens]:
    text, token = new_token(name, ["monitor"], "", datetime.now(UTC), None)
    return text, Tokens([token])


def test_somebody_who_proves_nothing_is_let_in_only_where_strangers_are() -> None:
    assert admit(ANYBODY, "", None, 0.0, strangers=True) is ANYBODY
    with pytest.raises(PermissionDenied, match="does not prove who they are") as caught:
        admit(ANYBODY, "", None, 0.0, strangers=False)
    assert "token" not in str(caught.value)
    with pytest.raises(PermissionDenied, match="TENSORBUS_TOKEN"):
        admit(ANYBODY, "", Tokens(), 0.0, strangers=False)


def test_what_the_connection_proves_is_enough() -> None:
    assert admit(CERTIFIED, "", Tokens(), 0.0, strangers=False) is CERTIFIED


def test_a_token_counts_for_more_than_what_the_connection_proves() -> None:
    text, tokens = token_of("monitor-1")
    for proven in (ANYBODY, CERTIFIED):
        assert admit(proven, text, tokens, 0.0, strangers=False).name == "monitor-1"


@pytest.mark.parametrize("strangers", [True, False])
def test_a_wrong_token_is_never_let_in(strangers: bool) -> None:
    text, _ = token_of("monitor-1")
    for proven in (ANYBODY, CERTIFIED):
        with pytest.raises(PermissionDenied, match="unknown"):
            admit(proven, text, Tokens(), 0.0, strangers=strangers)


def test_a_broker_that_takes_no_tokens_looks_at_none() -> None:
    assert admit(CERTIFIED, "tb_1_x", None, 0.0, strangers=False) is CERTIFIED
    with pytest.raises(PermissionDenied):
        admit(ANYBODY, "tb_1_x", None, 0.0, strangers=False)


def test_a_certificate_that_names_nobody_is_refused() -> None:
    with pytest.raises(PermissionDenied, match="names nobody"):
        admit(Identity("", (), "", "certificate", "01"), "", None, 0.0, strangers=True)
