"""Tokens: who has one is who it is for. The broker's file has only their hashes.

    tb_7f3a91c2_V2x...          the number, which may be known, and a secret of 32 random bytes

A secret that nobody chose cannot be guessed from its hash, so that one round of SHA-256 is enough; a slow hash, as
passwords need it, would only let strangers keep the broker busy.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from broker.errors import InvalidValue, PermissionDenied
from broker.files import read_file
from broker.limits import NAME_BYTES_MAX, TOKENS_BYTES_MAX, TOKENS_MAX
from broker.security.files import locked, replace_file
from broker.security.identity import Identity

_PREFIX: Final = "tb_"
_NUMBER_BYTES: Final = 6
_SECRET_BYTES: Final = 32
_ADVICE: Final = "tensorbus tokens create makes a new one"


class Token(msgspec.Struct, omit_defaults=True):
    """What the broker knows of a token.

    Attributes:
        id: its number.
        name: who has it.
        hash: SHA-256 of its secret, in hexadecimal digits.
        created: when, ISO 8601.
        roles: what the one who has it is.
        tenant: whose topics and groups that one sees.
        expires: when it ends, ISO 8601; empty for never.
        revoked: when it was revoked, ISO 8601; empty if it was not.
    """

    id: str
    name: str
    hash: str
    created: str
    roles: list[str] = []
    tenant: str = ""
    expires: str = ""
    revoked: str = ""

    def __repr__(self) -> str:
        return f"<Token {self.id} of {self.name!r}>"

    def expired(self, now_s: float) -> bool:
        """Whether its time is over, `now_s` being seconds since 1970."""
        return bool(self.expires) and datetime.fromisoformat(self.expires).timestamp() <= now_s


class _File(msgspec.Struct):
    tokens: list[Token]


class Tokens:
    """The tokens of one file, as it was when it was read."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self._by_id = {token.id: token for token in tokens}

    @property
    def all(self) -> list[Token]:
        """In the order of the file."""
        return list(self._by_id.values())

    def identity_of(self, text: str, now_s: float) -> Identity:
        """Who has this token.

        Args:
            text: the token.
            now_s: seconds since 1970.

        Raises:
            PermissionDenied: it is unknown, expired or revoked; the text says what to do, and not the token.
        """
        prefix, _, rest = text.partition("_")
        number, _, secret = rest.partition("_")
        token = self._by_id.get(number) if prefix + "_" == _PREFIX else None
        # Against something, so that it takes as long to be told that a number is unknown.
        expected = token.hash if token is not None else _hash("")
        if not hmac.compare_digest(_hash(secret), expected) or token is None:
            raise PermissionDenied(f"the token is unknown to this broker: check $TENSORBUS_TOKEN or token=; {_ADVICE}")
        if token.revoked:
            raise PermissionDenied(f"token {token.id} of {token.name!r} was revoked at {token.revoked}; {_ADVICE}")
        if token.expired(now_s):
            raise PermissionDenied(f"token {token.id} of {token.name!r} expired at {token.expires}; {_ADVICE}")
        return Identity(token.name, tuple(token.roles), token.tenant, "token", token.id)

    def is_valid(self, number: str) -> bool:
        """Whether a session that was opened with this token may stay: it is known and not revoked."""
        token = self._by_id.get(number)
        return token is not None and not token.revoked

    def __repr__(self) -> str:
        return f"<Tokens {len(self._by_id)}>"


def new_token(
    name: str, roles: Sequence[str], tenant: str, now: datetime, expires: datetime | None
) -> tuple[str, Token]:
    """A token that nobody else has: the text, which is nowhere kept, and what the broker is to know of it.

    Raises:
        InvalidValue: the name, a role or the tenant is empty, too long or has a control character, or the name a slash.
    """
    for what, value in (("name", name), *(("role", role) for role in roles), ("tenant", tenant or "none")):
        if not value or not value.isprintable() or len(value.encode()) > NAME_BYTES_MAX:
            raise InvalidValue(what, value, f"must be a text of 1 to {NAME_BYTES_MAX} bytes without control characters")
    if "/" in name:
        raise InvalidValue("name", name, "has a slash, behind which a client calls itself as it likes; use '-'")
    number, secret = secrets.token_hex(_NUMBER_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
    until = "" if expires is None else expires.isoformat(timespec="seconds")
    token = Token(number, name, _hash(secret), now.isoformat(timespec="seconds"), list(roles), tenant, until)
    return f"{_PREFIX}{number}_{secret}", token


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


# The file.


def read_tokens(path: Path) -> Tokens:
    """Reads a file.

    Raises:
        InvalidValue: it cannot be read or is not such a file.
    """
    try:
        tokens = msgspec.json.decode(read_file(path, TOKENS_BYTES_MAX), type=_File).tokens
        for token in tokens:
            _check_expires(token)
    except OSError as error:
        raise InvalidValue("tokens", str(path), f"cannot be read: {error.strerror}; {_ADVICE}") from error
    except msgspec.DecodeError as error:
        raise InvalidValue("tokens", str(path), f"is not a file of tensorbus tokens: {error}") from error
    except ValueError as error:
        raise InvalidValue("tokens", str(path), f"is not a file of tensorbus tokens: it {error}") from error
    if len(tokens) > TOKENS_MAX:
        raise InvalidValue("tokens", str(path), f"has {len(tokens)} tokens, the limit is {TOKENS_MAX}; remove old ones")
    return Tokens(tokens)


def _check_expires(token: Token) -> None:
    """Raises:
    ValueError: when it ends is no time.
    """
    try:
        if token.expires:
            datetime.fromisoformat(token.expires)
    except ValueError as error:
        raise ValueError(f"has a time that is none: {error}") from error


def add_token(path: Path, token: Token) -> None:
    """Adds a token to a file, which is made if there is none; only its owner can read it.

    Raises:
        InvalidValue: it cannot be read or written.
    """
    with locked(path.parent):
        tokens = read_tokens(path).all if path.exists() else []
        _write_tokens(path, [*tokens, token])


def revoke_token(path: Path, number: str) -> Token:
    """Revokes a token by its number, and says so in the file.

    Raises:
        InvalidValue: there is none, or the file cannot be read or written.
    """
    with locked(path.parent):
        tokens = read_tokens(path).all
        for token in tokens:
            if token.id == number:
                token.revoked = token.revoked or datetime.now(UTC).isoformat(timespec="seconds")
                _write_tokens(path, tokens)
                return token
    raise InvalidValue("token", number, f"is not in {path}; tensorbus tokens list shows the numbers")


def _write_tokens(path: Path, tokens: Sequence[Token]) -> None:
    replace_file(path, (json.dumps(msgspec.to_builtins(_File(list(tokens))), indent=1) + "\n").encode())
