"""Options that several commands share: which broker, and in which form to print.

A context (broker/contexts.py) becomes the environment of the process: what reads TENSORBUS_URL, TENSORBUS_TOKEN and
TENSORBUS_ADMIN finds the context's; so does what reads TENSORBUS_TLS.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Final, TypeVar

import click

from broker.config import adopt, environment
from broker.topics.policy import OVERFLOWS

C = TypeVar("C", bound=Callable[..., None])
_NUMBER_MAX: Final = 1e9
"""Of seconds thirty years; clocks and the kernel's calls do not take much more."""
_SEQUENCE_DIGITS_MAX: Final = 19


def with_context(command: C) -> C:
    """Gives a command --context, which holds where neither a flag nor an argument names the broker."""

    @wraps(command)
    def in_context(*arguments: object, context: str | None, **options: object) -> None:
        named = options.get("url") or options.get("address") or options.get("admin")
        if named and context:
            raise click.UsageError("--context names a broker, and so does the address: they exclude each other.")
        if not named:
            _adopt(context)
        command(*arguments, **options)

    text = "The broker, by its name in `tensorbus context`; default: $TENSORBUS_CONTEXT, else the one in use."
    option = click.option("--context", metavar="NAME", shell_complete=complete_context, help=text)
    return option(in_context)  # type: ignore[return-value]


def _adopt(flag: str | None) -> None:
    # Most commands find no context, and need not import what reads them.
    from broker import contexts

    variables = environment()
    if not flag and variables.get("TENSORBUS_URL"):
        # Whatever the file of contexts says, and whether it can be read.
        return
    chosen = contexts.choose(contexts.read(contexts.file_of(variables)), flag, variables)
    if chosen is not None:
        adopt(chosen.variables())


def complete_context(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names of contexts that begin so, for a shell."""
    from broker import contexts
    from broker.errors import BrokerError

    try:
        names = contexts.read(contexts.file_of(environment())).contexts
    except BrokerError:
        # A shell has no use for an error here; the command itself will tell.
        return []
    return sorted(name for name in names if name.startswith(incomplete))


def url(command: C) -> C:
    """Gives a command --url and --context."""
    text = "The broker's address; default: the context's, else $TENSORBUS_URL, else this host's."
    return click.option("--url", metavar="URL", help=text)(with_context(command))


def at_broker(command: C) -> C:
    """Gives a command the broker's address, as an argument or a flag."""
    return click.argument("address", metavar="[URL]", required=False)(url(command))


def echo_json(told: Mapping[str, object]) -> None:
    """Prints an object in one line of JSON."""
    click.echo(json.dumps(told, ensure_ascii=False, separators=(",", ":")))


class _Finite(click.FloatRange):
    """A number that is one: Python reads `nan` as a number too, of which no bound holds."""

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))  # type: ignore[arg-type]
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def finite(least: float = 0.0, most: float = _NUMBER_MAX, *, above: bool = False) -> click.FloatRange:
    """The type of a number that can be counted with.

    Args:
        least: the smallest.
        most: the largest.
        above: whether it has to be larger than `least`.
    """
    return _Finite(least, most, min_open=above)


def _start(text: str) -> str | int:
    """A sequence, or a word, which the client knows or refuses."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _SEQUENCE_DIGITS_MAX else text


replay = click.option(
    "--replay",
    type=_start,
    metavar="latest|all|SEQUENCE",
    help="Begin with what the topics have retained.",
)


def seconds(flag: str, default_s: float, text: str, *, least: float = 0.0, above: bool = False) -> Callable[[C], C]:
    """An option for a duration, such as `--timeout` for the argument `timeout_s`.

    Args:
        flag: its name.
        default_s: its default, in seconds.
        text: its help.
        least: the shortest, in seconds.
        above: whether it has to be longer than that.
    """
    return click.option(
        flag,
        f"{flag.removeprefix('--').replace('-', '_')}_s",
        type=finite(least, above=above),
        default=default_s,
        show_default=True,
        metavar="SECONDS",
        help=text,
    )


overflow = click.option(
    "--overflow",
    type=click.Choice(OVERFLOWS),
    help="What happens when this program does not keep up; default: what is declared for FILTER, else block, which "
    "slows the publishers down.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
