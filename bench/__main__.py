"""`python -m bench`: runs the benchmarks and prints their tables. See README.md."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bench import cases, contestants, machine
from bench.case import Case
from bench.nursery import Nursery
from bench.report import as_json, print_report
from bench.runner import Row, run_point

REPEATS = 5
CASE_NAMES = ",".join(case.name for case in cases.ALL)
SYSTEMS = ",".join(contestants.SYSTEMS)
TRANSPORTS = "tcp,unix"
MORE = {"transports": ["tls", "ucx"]}
"""What may be chosen besides the default, by option."""


def _chosen(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    """Reads a list with commas, and refuses a name that is neither in the default nor in MORE."""
    known = str(parameter.default).split(",") + MORE.get(str(parameter.name), [])
    names = value.split(",")
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
    return names


@click.command()
@click.option("--only", default=CASE_NAMES, callback=_chosen, show_default=True, help="Benchmarks to run.")
@click.option(
    "--transports",
    default=TRANSPORTS,
    callback=_chosen,
    show_default=True,
    help="Transports to measure; tls and ucx too.",
)
@click.option(
    "--contestants", "names", default=SYSTEMS, callback=_chosen, show_default=True, help="Systems to measure."
)
@click.option("--points", "label", default="", help="Measure only points whose name has this in it, as in `64 MiB`.")
@click.option("--repeats", type=click.IntRange(1), help=f"Runs of each step; default: {REPEATS}, or 1 with --quick.")
@click.option("--quick", is_flag=True, help="A run of seconds that shows that everything works, not how fast.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="A file for every repeat's figures."
)
@click.option(
    "--plots", type=click.Path(file_okay=False, path_type=Path), help="A folder for a figure of each benchmark, as PNG."
)
def main(
    only: list[str],
    transports: list[str],
    names: list[str],
    label: str,
    repeats: int | None,
    quick: bool,
    json_file: Path | None,
    plots: Path | None,
) -> None:
    """Measures tensorbus and its peers side by side."""
    # Ended by a signal, the run still ends its processes.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = [case for case in cases.ALL if case.name in only]
    wanted = [one for one in contestants.NAMED if one.system in names]
    absent = {contestant.name: contestant.missing() for contestant in wanted if contestant.missing()}
    facts = machine.facts([contestant for contestant in wanted if contestant.name not in absent])
    with Nursery() as nursery:
        rows = measure(nursery, chosen, transports, names, repeats or (1 if quick else REPEATS), label, quick=quick)
    print_report(chosen, rows, facts, absent)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(as_json(chosen, rows, facts, absent), indent=1)
        json_file.write_text(text + "\n", encoding="utf-8")
    if plots is not None:
        from bench.plot import draw_all

        draw_all(chosen, rows, plots)
    if any(row.failures for row in rows):
        sys.exit(1)


def measure(
    nursery: Nursery,
    chosen: Sequence[Case],
    transports: Sequence[str],
    names: Sequence[str],
    repeats: int,
    label: str = "",
    *,
    quick: bool,
) -> list[Row]:
    """Runs all points of the chosen cases with the systems that are installed."""
    rows: list[Row] = []
    for case in chosen:
        able = contestants.taking_part(case.contestants, names)
        found: list[Row] = []
        for point in (point for point in case.points(quick) if label in point.label):
            found += run_point(case, point, transports, able, repeats, nursery, tell)
        rows += sorted(found, key=lambda row: transports.index(row.transport))
    tell("")
    return rows


def tell(step: str) -> None:
    """Shows on a terminal what is being measured."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{step}", err=True, nl=False)


if __name__ == "__main__":
    main()
