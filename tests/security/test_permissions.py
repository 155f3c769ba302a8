"""Roles and rights: who may do what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.errors import InvalidValue, LimitExceeded
from broker.limits import RULES_MAX
from broker.security.identity import ANYBODY, Identity
from broker.security.permissions import EVERYTHING, Permissions, check_size
from broker.security.roles import READY_MADE, Role, Verb, check_rule, filled_in

TRAINER = Identity("trainer-3", ("trainer",), proof="certificate")


def configured(**roles: Role) -> Permissions:
    return Permissions(configured=True, roles={**READY_MADE, **roles})


def test_without_a_configuration_anybody_may_do_everything() -> None:
    assert Permissions().of(ANYBODY) is EVERYTHING
    assert Permissions().of(Identity("ada", proof="unix")) is EVERYTHING
    assert all(EVERYTHING.may(verb, "#") for verb in Verb)


@pytest.mark.parametrize("proof", ["token", "certificate"])
def test_a_token_or_certificate_without_a_role_may_do_nothing(proof: str) -> None:
    rights = Permissions().of(Identity("trainer-3", proof=proof))  # type: ignore[arg-type]
    assert rights.limited
    assert not any(rights.may(verb, "a") for verb in Verb)


def test_with_a_configuration_whoever_has_no_role_may_do_nothing() -> None:
    assert not any(configured().of(ANYBODY).may(verb, "a") for verb in Verb)


def test_a_rank_may_publish_only_under_its_own_name() -> None:
    rights = Permissions().of(TRAINER)
    assert rights.may(Verb.PUBLISH, "gradients/trainer-3")
    assert rights.may(Verb.PUBLISH, "metrics/trainer-3/loss")
    for topic in ("gradients/trainer-4", "gradients", "trainer-3", "control/stop", "$sys/trainer-3", "a/b/trainer-3"):
        assert not rights.may(Verb.PUBLISH, topic)
    assert "it may publish +/trainer-3/#" in rights.refusal(Verb.PUBLISH, "gradients/trainer-4")
    assert "'trainer-3' (roles: trainer)" in rights.refusal(Verb.PUBLISH, "gradients/trainer-4")


@pytest.mark.parametrize(
    ("role", "verb", "target", "expected"),
    [
        ("trainer", Verb.SUBSCRIBE, "#", True), ("trainer", Verb.SUBSCRIBE, "$sys/#", False),
        ("trainer", Verb.SUBSCRIBE, "$sys/groups/dp", True), ("trainer", Verb.REQUEST, "parameters/train/pull", True),
        ("trainer", Verb.RESPOND, "parameters/train/pull", False), ("trainer", Verb.JOIN, "dp", True),
        ("trainer", Verb.DECLARE, "gradients/+", False), ("trainer", Verb.ADMIN, "sessions", False),
        ("parameter-server", Verb.RESPOND, "parameters/train/pull", True),
        ("parameter-server", Verb.PUBLISH, "gradients/trainer-3", False),
        ("parameter-server", Verb.DECLARE, "parameters/#", True), ("parameter-server", Verb.DECLARE, "#", False),
        ("monitor", Verb.SUBSCRIBE, "$sys/#", True), ("monitor", Verb.ADMIN, "groups", True),
        ("monitor", Verb.PUBLISH, "control/stop", False), ("monitor", Verb.REQUEST, "parameters/train/pull", False),
        ("monitor", Verb.JOIN, "dp", False), ("monitor", Verb.ADMIN, "tenants/blue", False),
        ("admin", Verb.PUBLISH, "control/stop", True), ("admin", Verb.ADMIN, "tenants/blue", True),
        ("admin", Verb.SUBSCRIBE, "$dead/#", True), ("admin", Verb.DECLARE, "#", True),
    ],
)  # fmt: skip
def test_ready_made_roles(role: str, verb: Verb, target: str, expected: bool) -> None:
    identity = Identity("somebody", (role,), proof="token")
    assert Permissions().of(identity).may(verb, target) is expected


def test_what_one_role_denies_no_other_one_allows() -> None:
    quiet = Role(deny={Verb.PUBLISH: ("control/#",)})
    permissions = configured(quiet=quiet)
    assert permissions.of(Identity("a", ("admin",))).may(Verb.PUBLISH, "control/stop")
    rights = permissions.of(Identity("a", ("admin", "quiet")))
    assert not rights.may(Verb.PUBLISH, "control/stop")
    assert rights.may(Verb.PUBLISH, "a")


def test_an_admin_is_asked_nothing_unless_a_role_denies_something() -> None:
    permissions = configured(quiet=Role(deny={Verb.PUBLISH: ("a",)}))
    assert not permissions.of(Identity("a", ("admin",))).limited
    assert permissions.of(Identity("a", ("admin", "quiet"))).limited
    assert not Permissions().of(Identity("root", ("admin",), proof="unix")).limited


def test_a_declaration_may_not_reach_what_is_denied() -> None:
    role = Role({Verb.DECLARE: ("a/#",), Verb.SUBSCRIBE: ("a/#",)}, {Verb.DECLARE: ("a/b",), Verb.SUBSCRIBE: ("a/b",)})
    rights = configured(one=role).of(Identity("a", ("one",)))
    assert rights.may(Verb.SUBSCRIBE, "a/+")
    assert not rights.may(Verb.DECLARE, "a/+")
    assert rights.may(Verb.DECLARE, "a/c")


def test_roles_come_with_the_identity_by_name_and_to_everybody() -> None:
    permissions = replace(configured(), everybody=("monitor",), members={("trainer-3", ""): ("trainer",)})
    rights = permissions.of(Identity("trainer-3", proof="unix"))
    assert rights.may(Verb.PUBLISH, "a/trainer-3")
    assert rights.may(Verb.ADMIN, "server")
    assert not permissions.of(ANYBODY).may(Verb.PUBLISH, "a/trainer-3")
    foreign = permissions.of(Identity("trainer-3", tenant="blue", proof="unix"))
    assert rights.may(Verb.REQUEST, "a")
    assert not foreign.may(Verb.REQUEST, "a"), "a name of another tenant is somebody else"


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "$sys", "a\x00", "x" * 2000])
def test_a_name_that_is_no_level_allows_nothing_and_denies_everything(name: str) -> None:
    assert filled_in(("+/{name}/#", "open"), name, denies=False) == ("open",)
    assert filled_in(("+/{name}",), name, denies=True) == ("+/+",)
    rights = Permissions().of(Identity(name, ("trainer",), proof="token"))
    assert not rights.may(Verb.PUBLISH, f"a/{name}")
    assert not rights.may(Verb.PUBLISH, "a/b")


def test_a_role_that_nobody_has_defined_gives_nothing_and_is_named() -> None:
    rights = Permissions().of(Identity("a", ("captain",), proof="token"))
    assert rights.limited
    assert "captain (unknown)" in rights.refusal(Verb.PUBLISH, "a")


@pytest.mark.parametrize("text", ["", "a//b", "a/#/b", "a{name}", "x/{name}-1", "a\n", 5])
def test_a_rule_that_cannot_be_is_refused(text: object) -> None:
    with pytest.raises(InvalidValue):
        check_rule(text)  # type: ignore[arg-type]
    assert check_rule("+/{name}/#") == "+/{name}/#"


def test_rules_are_bounded_by_role_and_by_session() -> None:
    many = tuple(f"a/{number}" for number in range(RULES_MAX))
    big = Role({Verb.PUBLISH: many})
    check_size({"big": big})
    with pytest.raises(LimitExceeded):
        check_size({"big": Role({Verb.PUBLISH: (*many, "b")})})
    both = configured(big=big, more=Role({Verb.PUBLISH: ("b",)})).of(Identity("a", ("big", "more")))
    assert not both.may(Verb.PUBLISH, "b")
    assert not both.may(Verb.PUBLISH, "a/1")


def test_sessions_of_one_identity_share_their_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.security.permissions._RIGHTS_KEPT", 2)
    permissions = configured()
    assert permissions.of(TRAINER) is permissions.of(TRAINER)
    for number in range(5):
        permissions.of(Identity(f"trainer-{number}", ("trainer",)))
    assert len(permissions._made) <= 2
