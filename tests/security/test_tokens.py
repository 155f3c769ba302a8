"""Tokens: made once, known by a hash, compared in constant time, ended by time or by hand."""

from __future__ import annotations

import hmac
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.errors import InvalidValue, PermissionDenied
from broker.security import tokens as module
from broker.security.identity import Identity
from broker.security.tokens import Tokens, add_token, new_token, read_tokens, revoke_token

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_S = NOW.timestamp()


def test_a_token_says_who_has_it() -> None:
    text, token = new_token("trainer-3", ["trainer", "monitor"], "team-a", NOW, None)
    expected = Identity("trainer-3", ("trainer", "monitor"), "team-a", "token", token.id)
    assert Tokens([token]).identity_of(text, NOW_S) == expected


def test_no_two_tokens_are_the_same_and_each_has_256_random_bits() -> None:
    made = [new_token("x", ["x"], "", NOW, None)[0] for _ in range(100)]
    assert len(set(made)) == 100
    assert all(len(text.split("_", 2)[2]) == 43 for text in made)


def test_what_the_broker_keeps_does_not_hold_the_secret(tmp_path: Path) -> None:
    text, token = new_token("trainer-3", ["trainer"], "", NOW, None)
    file = tmp_path / "tokens.json"
    add_token(file, token)
    secret = text.split("_", 2)[2]
    assert secret not in file.read_text()
    assert secret not in repr(token)
    assert token.hash not in repr(token)
    assert secret not in repr(Tokens([token]))


def test_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    add_token(file, new_token("a", ["a"], "", NOW, None)[1])
    file.chmod(0o644)
    add_token(file, new_token("b", ["b"], "", NOW, None)[1])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [token.name for token in read_tokens(file).all] == ["a", "b"]
    assert [found.name for found in tmp_path.iterdir()] == ["tokens.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1] + ("A" if text[-1] != "A" else "B"),
        lambda text: text[:-1],
        lambda text: text + "x",
        lambda text: "tb_000000000000_" + text.split("_", 2)[2],
        lambda text: text.removeprefix("tb_"),
        lambda text: "x",
        lambda text: "tb__",
        lambda text: "\udc80" * 40,
        lambda text: text.upper(),
    ],
)
def test_anything_but_the_token_itself_is_unknown(change: object) -> None:
    text, token = new_token("trainer-3", ["trainer"], "", NOW, None)
    with pytest.raises(PermissionDenied, match="unknown to this broker") as caught:
        Tokens([token]).identity_of(change(text), NOW_S)
    assert text.split("_", 2)[2] not in str(caught.value)
    assert "tensorbus tokens create" in str(caught.value)


def test_a_known_and_an_unknown_number_are_compared_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(first: str, second: str) -> bool:
        compared.append((len(first), len(second)))
        return hmac.compare_digest(first, second)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(module, "hmac", Watched)
    text, token = new_token("trainer-3", ["trainer"], "", NOW, None)
    for wrong in (text[:-4] + "abcd", "tb_000000000000_x"):
        with pytest.raises(PermissionDenied):
            Tokens([token]).identity_of(wrong, NOW_S)
    assert compared == [(64, 64), (64, 64)]


def test_a_token_ends_at_its_time_and_says_when_that_was() -> None:
    text, token = new_token("trainer-3", ["trainer"], "", NOW, NOW + timedelta(hours=1))
    known = Tokens([token])
    assert known.identity_of(text, NOW_S + 3599).name == "trainer-3"
    with pytest.raises(PermissionDenied, match=r"of 'trainer-3' expired at 2026-03-01T13:00:00\+00:00; tensorbus"):
        known.identity_of(text, NOW_S + 3600)


def test_a_revoked_token_says_so_and_its_sessions_are_to_end(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    text, token = new_token("trainer-3", ["trainer"], "", NOW, None)
    add_token(file, token)
    assert read_tokens(file).is_valid(token.id)
    revoke_token(file, token.id)
    known = read_tokens(file)
    with pytest.raises(PermissionDenied, match="was revoked at"):
        known.identity_of(text, NOW_S)
    assert not known.is_valid(token.id)
    assert not known.is_valid("unheard")
    with pytest.raises(InvalidValue, match="tokens list shows"):
        revoke_token(file, "unheard")


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 129])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue):
        new_token(name, ["x"], "", NOW, None)
    with pytest.raises(InvalidValue):
        new_token("x", [name], "", NOW, None)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"tokens": [{}]}', json.dumps({"tokens": [{"id": "1", "name": "a", "hash": "", "created": "",
     "expires": "tomorrow"}]})],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(content)
    with pytest.raises(InvalidValue, match="not a file of tensorbus tokens"):
        read_tokens(file)
    with pytest.raises(InvalidValue, match="cannot be read"):
        read_tokens(tmp_path / "missing")


def test_a_token_is_for_nobody_whose_name_has_a_slash() -> None:
    with pytest.raises(InvalidValue, match="has a slash"):
        new_token("trainer-3/loader", ["x"], "", NOW, None)
