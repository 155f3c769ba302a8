"""The command `tensorbus`: flags in, one line of plain words for what goes wrong; the work is done elsewhere.

A command imports what it needs when it runs, so that `tensorbus pub` starts without the daemon's libraries.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO, Final, TypeVar

import click

from broker.cli import streams
from broker.cli.context import context
from broker.cli.options import as_json as _as_json
from broker.cli.options import at_broker as _at_broker
from broker.cli.options import echo_json, overflow, replay, seconds, with_context
from broker.cli.options import url as _url
from broker.cli.recordings import diff, record
from broker.cli.recordings import replay as replay_recording
from broker.cli.security import certs, tokens
from broker.cli.terminal import printable
from broker.config import PERMISSIONS, TENANTS, TOPICS, Config, admin_address, describe, environment, load
from broker.errors import BrokerError, ConnectError
from broker.limits import WAITS_S
from broker.masking import masked
from broker.version import version

C = TypeVar("C", bound=Callable[..., None])

LANES: Final = ("control", "default", "bulk")
SHELLS: Final = ("bash", "zsh", "fish")
BENCH_PARTS: Final = ("latency", "ping-pong", "request", "throughput", "tensors")
_SECTIONS: Final[Mapping[str, Sequence[str]]] = {
    "Run": ("serve", "bench"),
    "Messages": ("pub", "sub", "request", "topics"),
    "See": ("top", "groups", "stuck", "doctor"),
    "Keep": ("record", "replay", "diff"),
    "Let in": ("certs", "tokens"),
    "Set up": ("context", "completion"),
}
_METAVARS: Final = {
    "listen": "URL", "admin": "HOST:PORT", "name": "NAME", "log_level": "LEVEL", "log_format": "FORMAT",
    "certificates": "DIR", "tokens": "FILE", "audit": "FILE", "users": "USER=ROLE",
}  # fmt: skip


class _Failure(click.ClickException):
    """What the user is told in place of a traceback."""

    exit_code = 1

    def show(self, file: IO[str] | None = None) -> None:
        words = printable(masked(" ".join(self.message.splitlines())))
        click.echo(f"tensorbus: {words}", file=file, err=file is None)


class _NotAsked(_Failure):
    """No broker is there, or it could not be asked where exit status 1 is an answer."""

    exit_code = 3


class _Commands(click.Group):
    """Commands in sections, whose errors of tensorbus become one line and exit status 1, or 3 without a broker."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands, each section for one purpose; those of no section come last."""
        others = [name for name in self.list_commands(ctx) if not any(name in names for names in _SECTIONS.values())]
        for title, names in {**_SECTIONS, "More": others}.items():
            found = [(name, self.commands[name]) for name in names if name in self.commands]
            if found:
                with formatter.section(title):
                    width = formatter.width - 12
                    formatter.write_dl([(name, command.get_short_help_str(width)) for name, command in found])

    def invoke(self, ctx: click.Context) -> object:
        streams.take()
        try:
            return super().invoke(ctx)
        except ConnectError as error:
            raise _NotAsked(str(error)) from error
        except BrokerError as error:
            raise _Failure(str(error)) from error
        except OSError as error:
            streams.settle_output()
            if error.errno == errno.EPIPE:
                # Whoever reads the output has seen enough.
                raise
            raise _Failure(streams.words_of(error)) from error


def _tell_version(ctx: click.Context, flag: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"tensorbus {version()}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_tell_version, help="Print it and exit."
)
def main() -> None:
    """A low-latency message broker for machine-learning clusters."""


def _with_settings(command: C) -> C:
    """Gives a command one flag for each setting, explained in the words of Config."""
    explained = dict(re.findall(r"^ {8}(\w+): (.+)$", Config.__doc__ or "", re.MULTILINE))
    for entry in reversed([entry for entry in fields(Config) if entry.name not in (TOPICS, PERMISSIONS, TENANTS)]):
        flag = f"--{entry.name.replace('_', '-')}"
        many = entry.name in ("listen", "users")
        text = explained.get(entry.name, "") + (" May be given several times." if many else "")
        text = text[:1].upper() + text[1:]
        metavar = _METAVARS.get(entry.name, "VALUE")
        # A setting that is true or false needs no value to be true.
        alone = "true" if entry.type == "bool" else None
        command = click.option(
            flag, entry.name, multiple=many, metavar=metavar, help=text, is_flag=False, flag_value=alone
        )(command)
    return command


@main.command()
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Settings in TOML.")
@click.option("--show-config", is_flag=True, help="Print each setting, its value and where it is from; then exit.")
@_as_json
@_with_settings
def serve(file: Path | None, *, show_config: bool, as_json: bool, **settings: object) -> None:
    """Run the broker until Ctrl-C or SIGTERM.

    A setting is taken from its flag, else from its variable (TENSORBUS_ and its name in capitals), else from the file,
    else it has its default. Prints one line for each address at which it accepts sessions.
    """
    loaded = load(settings, environment(), file)
    if show_config:
        _show_config(describe(loaded), as_json=as_json)
        return
    from broker.cli.serve import run

    run(loaded.config, lambda: load(settings, environment(), file, again=True).config, as_json=as_json)


def _show_config(described: Sequence[tuple[str, str, str]], *, as_json: bool) -> None:
    if as_json:
        for name, value, origin in described:
            echo_json({"setting": name, "value": value, "from": origin})
        return
    rows = [("SETTING", "VALUE", "FROM"), *described]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        click.echo(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}")


@main.command()
@click.argument("topic")
@click.argument("value", required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="VALUE is JSON; with - each line of the input is. So is what --ack prints."
)
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="Publish each value N times.")
@click.option(
    "--lane", type=click.Choice(LANES), help="What it may overtake; default: what is declared for TOPIC, else default."
)
@click.option("--ack", is_flag=True, help="Wait for each message to be accepted, and print its sequence.")
@_url
def pub(
    topic: str, value: str | None, *, as_json: bool, count: int, lane: str | None, ack: bool, url: str | None
) -> None:
    """Publish VALUE to TOPIC; returns when the broker has it.

    VALUE is text, or what is read from the standard input if it is - (bytes). Without it, None is published.
    """
    from broker.cli.messages import publish, values_of

    publish(url, topic, values_of(value, as_json=as_json), count=count, lane=lane, ack=ack, as_json=as_json)


@main.command()
@click.argument("topic_filter", metavar="FILTER")
@click.option("--count", type=click.IntRange(min=1), help="End after N messages.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, with all there is to a message.")
@click.option("--raw", is_flag=True, help="The payloads as they travelled, with nothing between them.")
@replay
@overflow
@seconds("--reconnect-timeout", 30.0, "How long to look for a broker that has gone.")
@_url
def sub(
    topic_filter: str,
    *,
    count: int | None,
    as_json: bool,
    raw: bool,
    replay: str | int | None,
    overflow: str | None,
    reconnect_timeout_s: float,
    url: str | None,
) -> None:
    """Print the messages of the topics that FILTER matches, until Ctrl-C.

    A line is the topic and the value. In JSON, bytes are {"base64": ...} and tensors {"dtype", "shape"} with small
    ones' "data"; a number that JSON does not have, such as NaN, is null.
    """
    from broker.cli.messages import Form, subscribe

    if as_json and raw:
        raise click.UsageError("--json and --raw exclude each other.")
    form = Form.JSON if as_json else Form.RAW if raw else Form.TEXT
    subscribe(url, topic_filter, form, count, replay=replay, overflow=overflow, reconnect_timeout_s=reconnect_timeout_s)


@main.command()
@click.argument("topic")
@click.argument("value", required=False)
@click.option("--json", "as_json", is_flag=True, help="VALUE is JSON, and so is what is printed.")
@seconds("--timeout", 5.0, "How long to wait for the reply.", above=True)
@_url
def request(topic: str, value: str | None, *, as_json: bool, timeout_s: float, url: str | None) -> None:
    """Ask at TOPIC and print the value of the first reply.

    VALUE is as for pub.
    """
    from broker.cli.messages import ask, values_of

    ask(url, topic, values_of(value, as_json=as_json), as_json=as_json, timeout_s=timeout_s)


@main.command()
@click.argument("topic_filter", metavar="[FILTER]", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, as in /api/v1/topics.")
@click.option(
    "--admin", metavar="HOST:PORT", help="The broker's HTTP interface; default: $TENSORBUS_ADMIN, else this host's."
)
@with_context
def topics(topic_filter: str | None, *, as_json: bool, admin: str | None) -> None:
    """Show the topics that FILTER matches: what each keeps, every setting that holds for it, and why."""
    from broker.cli.topics import show

    show(admin_address(admin, environment()), topic_filter, as_json=as_json)


@main.command()
@seconds("--after", WAITS_S, "What has moved in this time is not stuck.")
@_as_json
@_at_broker
def stuck(address: str | None, url: str | None, *, after_s: float, as_json: bool) -> None:
    """Show which collectives wait, and for whom; exit status 1 when any does.

    For each group: the operation, how long, which ranks have come and which have not; of each of these its client,
    process and host, when it was last heard of, and its last message. Failures of the last ten minutes follow. Exit
    status 3 when the broker could not be asked.
    """
    from broker.cli.groups import show_stuck

    try:
        found = show_stuck(address or url, after_s, as_json=as_json)
    except BrokerError as error:
        raise _NotAsked(str(error)) from error
    if found:
        raise SystemExit(1)


@main.command()
@_as_json
@_at_broker
def groups(address: str | None, url: str | None, *, as_json: bool) -> None:
    """Show collective groups: who is in, what goes on, who is always late."""
    from broker.cli.groups import show_groups

    show_groups(address or url, as_json=as_json)


@main.command()
@seconds("--interval", 1.0, "Between two refreshes.", least=0.05)
@click.option("--once", is_flag=True, help="One refresh, with rates over one interval; then exit.")
@_as_json
@_at_broker
def top(address: str | None, url: str | None, *, interval_s: float, once: bool, as_json: bool) -> None:
    """Watch topics, sessions, queues, drops, groups and stragglers live.

    q or Ctrl-C ends it. Goes on when the broker is restarted. --json prints an object for each refresh.
    """
    from broker.cli.top import run

    run(address or url, interval_s, as_lines=as_json, once=once)


@main.command()
@_as_json
@_at_broker
def doctor(address: str | None, url: str | None, *, as_json: bool) -> None:
    """Say how a broker is reached, what is slow, and what changes it.

    Which transport and path a client gets, and why not a better one; round trip, bandwidth and clock; versions, limits
    and settings of the system. Takes about four seconds. Exit status 1 when something is bad, such as no broker.
    """
    from broker.cli.doctor import run

    if not run(address or url, as_json=as_json):
        raise SystemExit(1)


@main.command()
@click.option("--only", "parts", multiple=True, type=click.Choice(BENCH_PARTS), help="May be given several times.")
@seconds("--duration", 2.0, "About how long to measure each point.", least=0.01)
@_as_json
@click.option("--broker", "--url", "url", metavar="URL", help="Default: $TENSORBUS_URL, else this host's.")
@with_context
def bench(*, parts: tuple[str, ...], duration_s: float, as_json: bool, url: str | None) -> None:
    """Measure a running broker, from two processes of this host.

    One-way latency, round trips over two topics, requests, messages per second, and bandwidth of arrays that are
    summed, from ordinary memory and made in place. It sends as much as it can: not beside a job that matters.
    """
    from broker.cli.bench import run

    run(url, parts or BENCH_PARTS, duration_s, as_json=as_json)


@main.command()
@click.argument("shell", type=click.Choice(SHELLS))
@_as_json
def completion(shell: str, *, as_json: bool) -> None:
    """Print what makes SHELL complete commands, flags and contexts.

    For bash: eval "$(tensorbus completion bash)", as a line of ~/.bashrc; zsh likewise; for fish: tensorbus completion
    fish > ~/.config/fish/completions/tensorbus.fish.
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None, "click has all three"
    script = made(main, {}, "tensorbus", "_TENSORBUS_COMPLETE").source()
    if as_json:
        echo_json({"shell": shell, "script": script})
    else:
        click.echo(script)


for command in (certs, tokens, context, record, replay_recording, diff):
    main.add_command(command)
