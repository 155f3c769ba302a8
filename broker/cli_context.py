"""The commands `tensorbus context ...`: names for brokers."""

from __future__ import annotations

from typing import IO

import click

from broker.cli_options import as_json, complete_context
from broker.config import admin_address, environment


@click.group()
def context() -> None:
    """Name brokers, and choose the one that commands talk to.

    The others take --context NAME. They are kept in $XDG_CONFIG_HOME/tensorbus/contexts.toml, which only its owner can
    read.
    """


@context.command()
@click.argument("name")
@click.argument("address", metavar="URL")
@click.option("--admin", metavar="HOST:PORT", help="Where the broker's HTTP interface is.")
@click.option(
    "--token-file",
    type=click.File("r", encoding="utf-8"),
    metavar="FILE",
    help="A token that proves who you are; - reads it from the standard input.",
)
@click.option("--replace", is_flag=True, help="In place of one that is there already.")
def add(name: str, address: str, *, admin: str | None, token_file: IO[str] | None, replace: bool) -> None:
    """Give the broker at URL a name."""
    from broker import contexts
    from broker.errors import InvalidValue
    from broker.transport.addresses import parse_list

    parse_list(address)
    token = "" if token_file is None else token_file.read().strip()
    made = contexts.Context(address, "" if admin is None else admin_address(admin, {}), token)
    contexts.check(name, made)
    file = contexts.file_of(environment())
    kept = contexts.read(file)
    if name in kept.contexts and not replace:
        raise InvalidValue("context", name, "is there already; --replace takes its place")
    kept.contexts[name] = made
    contexts.write(file, kept)


@context.command()
@click.argument("name", required=False, shell_complete=complete_context)
@click.option("--none", "nothing", is_flag=True, help="None: $TENSORBUS_URL or this host's broker again.")
def use(name: str | None, *, nothing: bool) -> None:
    """Have commands talk to a broker by default."""
    if (name is None) is not nothing:
        raise click.UsageError("Give a NAME, or --none.")
    from broker import contexts

    file = contexts.file_of(environment())
    kept = contexts.read(file)
    if name is not None:
        kept.find(name, "the argument")
    kept.current = name or ""
    contexts.write(file, kept)


@context.command("list")
@as_json
def show(*, as_json: bool) -> None:
    """Show the names and their brokers; * is the one in use. Tokens are not shown."""
    import msgspec

    from broker import contexts
    from broker.cli_connect import table

    kept = contexts.read(contexts.file_of(environment()))
    rows: list[tuple[str, ...]] = [("", "NAME", "URL", "ADMIN", "TOKEN")]
    for name, entry in sorted(kept.contexts.items()):
        used = name == kept.current
        if as_json:
            told = {"name": name, "url": entry.url, "admin": entry.admin, "token": bool(entry.token), "current": used}
            click.echo(msgspec.json.encode(told))
        rows.append(("*" if used else "", name, entry.url, entry.admin or "-", "yes" if entry.token else "-"))
    if not as_json and not kept.contexts:
        click.echo("no contexts: tensorbus context add NAME URL makes one", err=True)
    elif not as_json:
        click.echo("\n".join(table(rows)))


@context.command()
@click.argument("name", shell_complete=complete_context)
def remove(name: str) -> None:
    """Forget a name."""
    from broker import contexts

    file = contexts.file_of(environment())
    kept = contexts.read(file)
    kept.find(name, "the argument")
    del kept.contexts[name]
    if kept.current == name:
        kept.current = ""
    contexts.write(file, kept)
