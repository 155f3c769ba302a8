"""The commands `tensorbus context ...`: names for brokers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from broker.cli.options import as_json, complete_context, echo_json
from broker.config import admin_address, environment

if TYPE_CHECKING:
    from broker.contexts import Context

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)


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
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Has a token that proves who you are, and is read when a command begins; - keeps that of the standard input.",
)
@click.option("--tls", "folder", type=_FOLDER, metavar="DIR", help="A folder of certificates, as $TENSORBUS_TLS.")
@click.option("--ca", "authority", type=_FILE, metavar="FILE", help="The authority that has signed the broker's, PEM.")
@click.option("--cert", "certificate", type=_FILE, metavar="FILE", help="Your certificate, PEM.")
@click.option("--key", type=_FILE, metavar="FILE", help="Its private key, PEM, without a password.")
@click.option("--replace", is_flag=True, help="In place of one that is there already.")
@as_json
def add(
    name: str,
    address: str,
    *,
    admin: str | None,
    token_file: Path | None,
    folder: Path | None,
    authority: Path | None,
    certificate: Path | None,
    key: Path | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Give the broker at URL a name.

    Of a tls:// address also with what it is trusted by and what you show: a folder that tensorbus certs has made, or
    the files. They stay where they are, and are read whenever a command needs them, as is the file of a token. A token
    that comes through a pipe is kept with the name.
    """
    links = {"ca.crt": authority, "tls.crt": certificate, "tls.key": key}
    files = {called: at for called, at in links.items() if at is not None}
    if folder and files:
        raise click.UsageError("--tls names a folder with all of --ca, --cert and --key: they exclude each other.")
    if (certificate is None) is not (key is None) or (files and authority is None):
        raise click.UsageError("--cert and --key belong together, and need --ca.")
    import msgspec

    from broker import contexts
    from broker.errors import InvalidValue
    from broker.transport.addresses import parse_list
    from broker.transport.tls.contexts import dialler_context

    addresses = parse_list(address)
    if (folder or files) and not any(each.scheme == "tls" for each in addresses):
        raise InvalidValue("context", address, "is not at tls://, so it has no use for certificates")
    made = contexts.Context(address, "" if admin is None else admin_address(admin, {}), **_token(token_file))
    contexts.check(name, made)
    file = contexts.file_of(environment())
    kept = contexts.read(file)
    before = kept.contexts.get(name)
    if before is not None and not replace:
        raise InvalidValue("context", name, "is there already; --replace takes its place")
    tls = contexts.link(file, name, files) if files else str(folder.absolute()) if folder else ""
    kept.contexts[name] = made = msgspec.structs.replace(made, tls=tls)
    try:
        if tls:
            # What cannot be used is told now, and not when it is needed.
            dialler_context(tls)
        contexts.check(name, made)
        contexts.write(file, kept)
    except BaseException:
        contexts.unlink(file, made)
        raise
    if before is not None:
        contexts.unlink(file, before)
    if as_json:
        echo_json(_told(name, made, used=name == kept.current))


@context.command()
@click.argument("name", required=False, shell_complete=complete_context)
@click.option("--none", "nothing", is_flag=True, help="None: $TENSORBUS_URL or this host's broker again.")
@as_json
def use(name: str | None, *, nothing: bool, as_json: bool) -> None:
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
    if as_json:
        echo_json({"current": kept.current})


@context.command("list")
@as_json
def show(*, as_json: bool) -> None:
    """Show the names and their brokers; * is the one in use. Tokens are not shown."""
    from broker import contexts
    from broker.cli.connect import table

    kept = contexts.read(contexts.file_of(environment()))
    rows: list[tuple[str, ...]] = [("", "NAME", "URL", "ADMIN", "TOKEN", "TLS")]
    for name, entry in sorted(kept.contexts.items()):
        used = name == kept.current
        if as_json:
            echo_json(_told(name, entry, used=used))
        token, tls = "kept" if entry.token else entry.token_file or "-", entry.tls or "-"
        rows.append(("*" if used else "", name, entry.url, entry.admin or "-", token, tls))
    if not as_json and not kept.contexts:
        click.echo("no contexts: tensorbus context add NAME URL makes one", err=True)
    elif not as_json:
        click.echo("\n".join(table(rows)))


@context.command()
@click.argument("name", shell_complete=complete_context)
@as_json
def remove(name: str, *, as_json: bool) -> None:
    """Forget a name."""
    from broker import contexts

    file = contexts.file_of(environment())
    kept = contexts.read(file)
    removed = kept.find(name, "the argument")
    del kept.contexts[name]
    if kept.current == name:
        kept.current = ""
    contexts.write(file, kept)
    contexts.unlink(file, removed)
    if as_json:
        echo_json({"removed": name})


def _told(name: str, entry: Context, *, used: bool) -> dict[str, object]:
    """A context without its secrets."""
    return {
        "name": name,
        "url": entry.url,
        "admin": entry.admin,
        "token": bool(entry.token or entry.token_file),
        "token_file": entry.token_file,
        "tls": entry.tls,
        "current": used,
    }


def _token(file: Path | None) -> dict[str, str]:
    """A token, or where it is: a pipe has it once."""
    from broker.contexts import read_token

    if file is None:
        return {}
    if file.is_file():
        # What cannot be used is told now, and not when it is needed.
        read_token(str(file))
        return {"token_file": str(file.absolute())}
    return {"token": read_token("/dev/stdin" if str(file) == "-" else str(file))}
