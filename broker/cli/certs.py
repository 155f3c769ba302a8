"""What `tensorbus certs` does: makes an authority, signs certificates, shows them and takes them back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from broker.cli.connect import table
from broker.cli.options import echo_json
from broker.cli.terminal import printable
from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority, Issued
from broker.security.roles import role_of


def init(
    folder: Path, hosts: Sequence[str], ranks: int, names: Sequence[str], tenant: str, days: float, *, as_json: bool
) -> None:
    """Makes an authority, a broker's certificate, and one for each rank and name."""
    authority = CertificateAuthority.create(folder)
    at = tuple(dict.fromkeys((*LOCAL_HOSTS, *hosts)))
    _tell(*authority.issue(BROKER, (BROKER,), tenant, at, days), as_json=as_json)
    for name in (*(f"trainer-{rank}" for rank in range(ranks)), *names):
        _tell(*authority.issue(name, (role_of(name),), tenant, (), days), as_json=as_json)
    if as_json:
        return
    click.echo(
        f"Start the broker with: tensorbus serve --listen tls://0.0.0.0:4870 --certificates {folder / BROKER}\n"
        f"Give each process its own folder, as tls= or $TENSORBUS_TLS. {folder / 'ca.key'} stays here."
    )


def issue(
    folder: Path,
    names: Sequence[str],
    roles: Sequence[str],
    tenant: str,
    hosts: Sequence[str],
    days: float,
    *,
    as_json: bool,
) -> None:
    """Signs certificates of an authority that exists; a broker's new one is for the hosts of its last one."""
    authority = CertificateAuthority(folder)
    for name in names:
        at = hosts or authority.hosts_of(name)
        _tell(*authority.issue(name, tuple(roles) or (role_of(name),), tenant, at, days), as_json=as_json)


def revoke(folder: Path, wanted: Sequence[str], *, as_json: bool) -> None:
    """Takes certificates back."""
    authority = CertificateAuthority(folder)
    for name in wanted:
        for one in authority.revoke(name):
            if as_json:
                echo_json(msgspec.structs.asdict(one))
            else:
                click.echo(f"revoked {one.name} {one.serial}")
    if as_json:
        return
    click.echo(
        f"A broker takes {folder / 'ca.crl'} over from its own folder: copy it there if that is not in {folder}."
    )


def show(folder: Path, *, as_json: bool) -> None:
    """Prints what an authority has signed."""
    issued = CertificateAuthority(folder).issued()
    if as_json:
        for one in issued:
            echo_json(msgspec.structs.asdict(one))
        return
    rows: list[tuple[str, ...]] = [("NAME", "ROLES", "TENANT", "STATE", "EXPIRES", "SERIAL")]
    rows += [(one.name, "+".join(one.roles), one.tenant, _state(one), one.expires, one.serial) for one in issued]
    for line in table(rows):
        click.echo(printable(line))


def _state(one: Issued) -> str:
    if one.revoked:
        return "revoked"
    return "expired" if datetime.fromisoformat(one.expires) <= datetime.now(UTC) else "good"


def _tell(folder: Path, one: Issued, *, as_json: bool) -> None:
    if as_json:
        echo_json({"folder": str(folder), **msgspec.structs.asdict(one)})
        return
    dialled = f", dialled at {', '.join(one.hosts)}" if one.hosts else ""
    click.echo(f"{folder}: {one.name}, role {'+'.join(one.roles)}, until {one.expires}{dialled}")
