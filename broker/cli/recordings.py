"""The commands `tensorbus record`, `replay` and `diff`; record.py and diff.py do the work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from broker.cli.options import as_json, finite, overflow, url
from broker.cli.options import replay as replay_from
from broker.config import size_of

if TYPE_CHECKING:
    from broker.cli.record import Told

_FILE: Final = click.Path(dir_okay=False, path_type=Path)
_FASTEST: Final = "max"


def _size(text: str) -> int:
    """Bytes, as 1000000 or 64MiB."""
    size = int(text) if text.isdecimal() else size_of(text)
    if not isinstance(size, int) or not size:
        raise click.BadParameter(f"{text!r} is no size above 0, such as 1000000 or 64MiB")
    return size


def _speed(text: str) -> float:
    """How many times as fast; infinite for as fast as it goes."""
    try:
        speed = float("inf") if text == _FASTEST else float(text)
    except ValueError:
        speed = 0.0
    if not speed > 0:
        raise click.BadParameter(f"{text!r} is neither a number above 0 nor {_FASTEST}")
    return speed


_count = click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")


@click.command()
@click.argument("topic_filter", metavar="FILTER")
@click.option(
    "--output", "-o", "file", required=True, type=_FILE, metavar="FILE", help="Where to; it must not be there."
)
@click.option("--append", is_flag=True, help="Go on with FILE; what is torn at its end is cut off.")
@_count
@click.option("--duration", "duration_s", type=finite(above=True), metavar="SECONDS", help="End then.")
@click.option("--max-size", "bytes_max", type=_size, metavar="SIZE", help="End when FILE is so long, as 500MiB.")
@replay_from
@overflow
@as_json
@url
def record(
    topic_filter: str,
    *,
    file: Path,
    append: bool,
    count: int | None,
    duration_s: float | None,
    bytes_max: int | None,
    replay: str | int | None,
    overflow: str | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Record the messages of the topics that FILTER matches, until Ctrl-C.

    Each has its payload, headers, times and a checksum. tensorbus replay publishes them again, tensorbus diff compares
    them. Exit status 1 when messages were lost.
    """
    from broker.cli.record import Bounds, record

    bounds = Bounds(count, duration_s, bytes_max)
    told = record(url, topic_filter, file, bounds, append=append, replay=replay, overflow=overflow)
    _tell(told, "recorded", as_json=as_json)


@click.command()
@click.argument("file", type=_FILE)
@click.option(
    "--speed",
    type=_speed,
    default="1",
    metavar="TIMES|max",
    show_default=True,
    help="How many times as fast as it was.",
)
@click.option(
    "--only", "filters", multiple=True, metavar="FILTER", help="Only these topics; may be given several times."
)
@click.option("--prefix", default="", metavar="TOPIC", help="Publish below TOPIC, as rerun/metrics/loss.")
@click.option("--show", is_flag=True, help="Print the messages in place of publishing them; needs no broker.")
@_count
@as_json
@url
def replay(
    file: Path,
    *,
    speed: float,
    filters: tuple[str, ...],
    prefix: str,
    show: bool,
    count: int | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Publish what FILE has recorded, to the same topics and in the same time.

    Exit status 1 when the recording cannot be read to its end; what is before is published all the same.
    """
    from broker.cli import record as cli_record

    if show:
        told = cli_record.show(file, filters, as_json=as_json, asked_count=count)
        _end(told)
        return
    told = cli_record.replay(url, file, speed=speed, filters=filters, prefix=prefix, asked_count=count)
    _tell(told, "published", as_json=as_json)


@click.command()
@click.argument("first", metavar="A", type=_FILE)
@click.argument("second", metavar="[B]", type=_FILE, required=False)
@click.option(
    "--any-sender", is_flag=True, help="Compare topics, whoever published; default: each publisher of a topic."
)
@as_json
def diff(first: Path, second: Path | None, *, any_sender: bool, as_json: bool) -> None:
    """Find where ranks, or two recordings, began to differ.

    Of A alone: the first round in which a rank holds something else than the others, as they say with clients.Digests.
    Of A and B: the first message of each topic and publisher that is another one. Exit status 1 when anything differs.
    """
    from broker.cli import diff as cli_diff

    if second is None:
        differs = cli_diff.compare_ranks(first, as_json=as_json)
    else:
        differs = cli_diff.compare_recordings(first, second, by_sender=not any_sender, as_json=as_json)
    if differs:
        raise SystemExit(1)


def _tell(told: Told, verb: str, *, as_json: bool) -> None:
    import msgspec

    from broker.cli.record import summary

    click.echo(msgspec.json.encode(told) if as_json else summary(told, verb))
    _end(told)


def _end(told: Told) -> None:
    if told.problem:
        click.echo(f"tensorbus: {told.file} cannot be read to its end: {told.problem}", err=True)
    if told.problem or told.lost or told.unreadable:
        raise SystemExit(1)
