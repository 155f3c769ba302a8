"""What `tensorbus tokens` does: make, show and take back tokens."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click
import msgspec

from broker.cli.connect import table
from broker.cli.options import echo_json
from broker.cli.terminal import printable
from broker.errors import InvalidValue
from broker.security.roles import role_of
from broker.security.tokens import Token, add_token, new_token, read_tokens, revoke_token

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LASTS_MAX: Final = timedelta(days=36_500)
_DURATION: Final = re.compile(r"(\d{1,6})([smhdw])")


def create(file: Path, name: str, roles: Sequence[str], tenant: str, lasts: str | None, *, as_json: bool) -> None:
    """Makes a token, prints it, and adds its hash to the file.

    Raises:
        InvalidValue: the name, a role or the duration cannot be, or the file cannot be used.
    """
    now = datetime.now(UTC)
    expires = None if lasts is None else now + duration(lasts)
    text, token = new_token(name, tuple(roles) or (role_of(name),), tenant, now, expires)
    add_token(file, token)
    if as_json:
        echo_json({"token": text, **_shown(token)})
        return
    click.echo(text)
    until = token.expires or "it is revoked"
    click.echo(
        f"token {token.id} of {name}, role {'+'.join(token.roles)}, until {until}. It is shown this once; give it as "
        "$TENSORBUS_TOKEN, and not on a command line.",
        err=True,
    )


def duration(text: str) -> timedelta:
    """A time such as 12h or 30d.

    Raises:
        InvalidValue: it is none.
    """
    found = _DURATION.fullmatch(text)
    if not found or not int(found[1]):
        raise InvalidValue("duration", text, "write a number and s, m, h, d or w, such as 12h or 30d")
    lasts = timedelta(seconds=int(found[1]) * _UNITS_S[found[2]])
    if lasts > _LASTS_MAX:
        raise InvalidValue("duration", text, f"is longer than {_LASTS_MAX.days}d; without --expires it is for ever")
    return lasts


def revoke(file: Path, numbers: Sequence[str], *, as_json: bool) -> None:
    """Takes tokens back.

    Raises:
        InvalidValue: there is none of a number.
    """
    for number in numbers:
        token = revoke_token(file, number)
        if as_json:
            echo_json(_shown(token))
        else:
            click.echo(f"revoked {token.id} of {token.name}")


def show(file: Path, *, as_json: bool) -> None:
    """Prints the tokens of a file, without what they could be used by."""
    tokens = read_tokens(file).all
    if as_json:
        for token in tokens:
            echo_json(_shown(token))
        return
    rows: list[tuple[str, ...]] = [("ID", "NAME", "ROLES", "TENANT", "STATE", "EXPIRES", "CREATED")]
    rows += [
        (one.id, one.name, "+".join(one.roles), one.tenant, _state(one), one.expires or "never", one.created)
        for one in tokens
    ]
    for line in table(rows):
        click.echo(printable(line))


def _shown(token: Token) -> dict[str, object]:
    """A token without what it could be used by."""
    described = msgspec.structs.asdict(token)
    del described["hash"]
    return {**described, "state": _state(token)}


def _state(token: Token) -> str:
    return "revoked" if token.revoked else "expired" if token.expired(time.time()) else "good"
