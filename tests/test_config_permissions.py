"""Roles, members and tenants in the configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.config import describe, load
from broker.errors import ConfigError
from broker.security.identity import ANYBODY, Identity
from broker.security.quotas import Quotas
from broker.security.roles import Verb

EXAMPLE = """
[permissions]
everybody = ["reader"]
members = { "trainer-0" = ["trainer"], "eve@blue" = ["admin"] }

[permissions.roles.reader]
includes = ["monitor"]
allow = { subscribe = ["metrics/#"], admin = ["server"] }
deny = { subscribe = ["metrics/private/#"] }

[permissions.roles.careful]
includes = ["reader", "admin"]
deny = { publish = ["control/#"] }

[tenants.blue]
sessions_max = 100
held_bytes_max = "64MiB"

[tenants."*"]
bytes_per_second_max = 1000000
"""


def load_text(text: str, folder: Path) -> object:
    file = folder / "broker.toml"
    file.write_text(text)
    return load({}, {}, file)


def test_a_whole_example(tmp_path: Path) -> None:
    loaded = load_text(EXAMPLE, tmp_path)
    config = loaded.config  # type: ignore[attr-defined]
    permissions = config.permissions
    anybody = permissions.of(ANYBODY)
    assert anybody.may(Verb.SUBSCRIBE, "metrics/#")
    assert not anybody.may(Verb.SUBSCRIBE, "metrics/private/loss")
    assert not anybody.may(Verb.PUBLISH, "a")
    assert permissions.of(Identity("trainer-0", proof="unix")).may(Verb.PUBLISH, "gradients/trainer-0")
    assert permissions.of(Identity("eve", tenant="blue")).may(Verb.PUBLISH, "a")
    assert not permissions.of(Identity("eve@blue")).may(Verb.PUBLISH, "a")
    assert not permissions.of(Identity("eve")).may(Verb.PUBLISH, "a")
    careful = permissions.of(Identity("x", ("careful",)))
    assert careful.may(Verb.PUBLISH, "a")
    assert not careful.may(Verb.PUBLISH, "control/stop")
    assert not careful.may(Verb.SUBSCRIBE, "metrics/private/loss"), "what an included role denies holds"
    assert config.tenants == {
        "blue": Quotas(sessions_max=100, held_bytes_max=64 << 20), "*": Quotas(bytes_per_second_max=1_000_000)
    }  # fmt: skip
    told = {name: value for name, value, _ in describe(loaded)}  # type: ignore[arg-type]
    assert told["permissions"] == "everybody=reader members=2 roles=reader,careful"
    assert told["tenants.blue"] == f"sessions_max=100 held_bytes_max={64 << 20}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("permissions = 3", "expected a table"),
        ("[permissions]\neverybdy = []", "did you mean everybody"),
        ("[permissions]\neverybody = 'trainer'", "expected a list of roles"),
        ("[permissions]\neverybody = ['captain']", "no such role; there are trainer"),
        ("[permissions]\nmembers = { a = ['captain'] }", "members.a"),
        ("[permissions.roles.trainer]\nallow = {}", "is ready-made"),
        ("[permissions.roles.a]\nincludes = ['b']", "no such role"),
        ("[permissions.roles.a]\nincludes = ['b']\n[permissions.roles.b]\nincludes = ['a']", "a role includes itself"),
        ("[permissions.roles.a]\nallow = { publsh = ['#'] }", "did you mean publish"),
        ("[permissions.roles.a]\nallow = { publish = '#' }", "expected a list of topic filters"),
        ("[permissions.roles.a]\nallow = { publish = ['a/#/b'] }", "# is level 2 of 3"),
        ("[permissions.roles.a]\nallow = { publish = ['a-{name}'] }", "stands alone in its level"),
        ("[permissions.roles.a]\nallow = { publish = [3] }", "must be a text"),
        ("[tenants.a]\nsessions = 3", "did you mean sessions_max"),
        ("[tenants.a]\nsessions_max = 0", "expected an integer above 0"),
        ("[tenants.a]\nheld_bytes_max = 'much'", "expected an integer above 0"),
        ("[tenants.a]\nsessions_max = true", "expected an integer above 0"),
        ("[tenants]\na = 3", "expected a table"),
        ("tenants = []", "expected a table"),
    ],
)
def test_what_cannot_be_is_refused_with_the_place_and_what_to_do(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        load_text(text, tmp_path)
    assert "broker.toml" in str(caught.value)


def test_permissions_cannot_be_set_in_the_environment() -> None:
    with pytest.raises(ConfigError, match="only be set in a file"):
        load({}, {"TENSORBUS_PERMISSIONS": "all"}, None)


def test_roles_that_include_one_another_are_made_once_each_and_not_too_deep(tmp_path: Path) -> None:
    def chain(length: int, times: int) -> str:
        tables = (
            f"[permissions.roles.r{number}]\nincludes = {[f'r{number + 1}'] * times}\n" for number in range(length)
        )
        return "".join(tables) + f"[permissions.roles.r{length}]\nallow = {{ publish = ['a'] }}\n"

    # Made anew for each that includes it, the last one would be made 10^15 times.
    config = load_text(chain(15, 10), tmp_path).config  # type: ignore[attr-defined]
    assert config.permissions.of(Identity("x", ("r0",))).may(Verb.PUBLISH, "a")
    with pytest.raises(ConfigError, match="over 16 deep"):
        load_text(chain(1000, 1), tmp_path)
