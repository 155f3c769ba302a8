"""What `tensorbus certs` does: makes an authority, signs certificates, shows them and takes them back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from broker.cli_connect import printable, table
from broker.security.authority import BROKER, LOCAL_HOSTS, Authority, Issued
from broker.security.roles import role_of


def init(folder: Path, hosts: Sequence[str], ranks: int, names: Sequence[str], tenant: str, days: float) -> None:
    """Makes an authority, a broker's certificate, and one for each rank and name."""
    authority = Authority.create(folder)
    _tell(*authority.issue(BROKER, (BROKER,), tenant, tuple(dict.fromkeys((*LOCAL_HOSTS, *hosts))), days))
    for name in (*(f"trainer-{rank}" for rank in range(ranks)), *names):
        _tell(*authority.issue(name, (role_of(name),), tenant, (), days))
    click.echo(
        f"Start the broker with: tensorbus serve --listen tls://0.0.0.0:4870 --certificates {folder / BROKER}\n"
        f"Give each process its own folder, as tls= or $TENSORBUS_TLS. {folder / 'ca.key'} stays here."
    )


def issue(
    folder: Path, names: Sequence[str], roles: Sequence[str], tenant: str, hosts: Sequence[str], days: float
) -> None:
    """Signs certificates of an authority that exists."""
    authority = Authority(folder)
    for name in names:
        _tell(*authority.issue(name, tuple(roles) or (role_of(name),), tenant, hosts, days))


def revoke(folder: Path, wanted: Sequence[str]) -> None:
    """Takes certificates back."""
    authority = Authority(folder)
    for name in wanted:
        for one in authority.revoke(name):
            click.echo(f"revoked {one.name} {one.serial}")
    click.echo(
        f"A broker takes {folder / 'ca.crl'} over from its own folder: copy it there if that is not in {folder}."
    )


def show(folder: Path, *, as_json: bool) -> None:
    """Prints what an authority has signed."""
    issued = Authority(folder).issued()
    if as_json:
        for one in issued:
            click.echo(json.dumps(msgspec.structs.asdict(one)))
        return
    rows: list[tuple[str, ...]] = [("NAME", "ROLES", "TENANT", "STATE", "EXPIRES", "SERIAL")]
    rows += [(one.name, "+".join(one.roles), one.tenant, _state(one), one.expires, one.serial) for one in issued]
    for line in table(rows):
        click.echo(printable(line))


def _state(one: Issued) -> str:
    if one.revoked:
        return "revoked"
    return "expired" if datetime.fromisoformat(one.expires) <= datetime.now(UTC) else "good"


def _tell(folder: Path, one: Issued) -> None:
    click.echo(f"{folder}: {one.name}, role {'+'.join(one.roles)}, until {one.expires}")
