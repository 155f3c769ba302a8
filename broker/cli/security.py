"""The commands `tensorbus certs` and `tensorbus tokens`: flags in; certs.py and tokens.py do the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click

from broker.cli.options import as_json, finite
from broker.limits import WORLD_SIZE_MAX

C = TypeVar("C", bound=Callable[..., None])
DAYS_MAX: Final = 36_500.0
"""A hundred years; no certificate counts for longer than its authority anyway."""
_FOLDER: Final = click.Path(path_type=Path, file_okay=False)

_folder = click.argument("folder", metavar="DIR", type=_FOLDER)
_tenant = click.option("--tenant", default="", metavar="NAME", help="Whose topics and groups they see.")
_hosts = click.option(
    "--host", "hosts", multiple=True, metavar="HOST", help="Where the broker is dialled; may be given several times."
)
_roles = click.option(
    "--role", "roles", multiple=True, metavar="ROLE", help="What they are; default: NAME without the number at its end."
)
_file = click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), default=Path("tokens.json"), show_default=True,
    metavar="FILE", help="The broker's file of tokens.",
)  # fmt: skip


def _days(command: C) -> C:
    return click.option(
        "--days",
        type=finite(most=DAYS_MAX, above=True),
        default=365.0,
        show_default=True,
        help="How long they count.",
    )(command)


@click.group()
def certs() -> None:
    """Make the certificates of a job, and take them back.

    DIR is the folder of an authority. What a process gets is the folder DIR/NAME, and nothing else of it.
    """


@certs.command()
@_folder
@_hosts
@click.option(
    "--ranks", type=click.IntRange(0, WORLD_SIZE_MAX), default=0, show_default=True,
    help="Certificates for trainer-0 to trainer-N-1.",
)  # fmt: skip
@click.option("--name", "names", multiple=True, metavar="NAME", help="One for NAME too; may be given several times.")
@_tenant
@_days
@as_json
def init(
    folder: Path,
    *,
    hosts: tuple[str, ...],
    ranks: int,
    names: tuple[str, ...],
    tenant: str,
    days: float,
    as_json: bool,
) -> None:
    """Make an authority in DIR, the broker's certificate, and one for each rank.

    The broker can be dialled at the given hosts, and at this one's loopback.
    """
    from broker.cli import certs as cli_certs

    cli_certs.init(folder, hosts, ranks, names, tenant, days, as_json=as_json)


@certs.command()
@_folder
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_roles
@_tenant
@_hosts
@_days
@as_json
def issue(
    folder: Path,
    names: tuple[str, ...],
    *,
    roles: tuple[str, ...],
    tenant: str,
    hosts: tuple[str, ...],
    days: float,
    as_json: bool,
) -> None:
    """Sign a certificate for each NAME, in the place of an older one.

    With --host it is a broker's; a broker's new one is for the hosts of its last one, if none is given.
    """
    from broker.cli import certs as cli_certs

    cli_certs.issue(folder, names, roles, tenant, hosts, days, as_json=as_json)


@certs.command()
@_folder
@click.argument("wanted", metavar="NAME|SERIAL...", nargs=-1, required=True)
@as_json
def revoke(folder: Path, wanted: tuple[str, ...], *, as_json: bool) -> None:
    """Take back a certificate, or all of a name."""
    from broker.cli import certs as cli_certs

    cli_certs.revoke(folder, wanted, as_json=as_json)


@certs.command("list")
@_folder
@as_json
def show_certificates(folder: Path, *, as_json: bool) -> None:
    """Show what was signed."""
    from broker.cli import certs as cli_certs

    cli_certs.show(folder, as_json=as_json)


@click.group()
def tokens() -> None:
    """Make tokens, and take them back.

    The broker's file (--tokens) has only what they can be recognised by.
    """


@tokens.command()
@click.argument("name")
@_roles
@_tenant
@click.option("--expires", "lasts", metavar="TIME", help="How long it counts, such as 12h or 30d; default: for ever.")
@_file
@as_json
def create(name: str, *, roles: tuple[str, ...], tenant: str, lasts: str | None, file: Path, as_json: bool) -> None:
    """Print a new token for NAME: the one time that it can be seen."""
    from broker.cli import tokens as cli_tokens

    cli_tokens.create(file, name, roles, tenant, lasts, as_json=as_json)


@tokens.command("revoke")
@click.argument("numbers", metavar="ID...", nargs=-1, required=True)
@_file
@as_json
def revoke_tokens(numbers: tuple[str, ...], *, file: Path, as_json: bool) -> None:
    """Take tokens back."""
    from broker.cli import tokens as cli_tokens

    cli_tokens.revoke(file, numbers, as_json=as_json)


@tokens.command("list")
@_file
@as_json
def show_tokens(*, file: Path, as_json: bool) -> None:
    """Show the tokens of a file, without their secrets."""
    from broker.cli import tokens as cli_tokens

    cli_tokens.show(file, as_json=as_json)
