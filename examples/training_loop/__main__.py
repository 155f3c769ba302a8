"""`python -m examples.training_loop`: the whole run with one command; see README.md."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from examples.training_loop import launch
from examples.training_loop.job import MODELS, MODES, Job
from examples.training_loop.processes import ChildFailed

TARGET_ACCURACY = {"digits": 0.95, "torch": 0.4}
DEFAULTS = {"digits": {"epochs": 25, "learning_rate": 0.2}, "torch": {"epochs": 1, "learning_rate": 0.2}}


@click.command()
@click.option("--mode", type=click.Choice([*MODES, "all"]), default="all", show_default=True)
@click.option("--trainers", type=click.IntRange(1, 64), default=2, show_default=True, help="How many.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training data.  [default: 25; torch: 1]")
@click.option("--model", type=click.Choice(MODELS), default="digits", show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out"), show_default=True)
@click.option("--late", default=0.0, show_default=True, help="Seconds by which the last trainer is late in each step.")
@click.option("--elastic", is_flag=True, help="Kill the last trainer on the way, and let another one take its place.")
@click.option("--admin", default="off", show_default=True, help="HOST:PORT of the broker's dashboard and metrics.")
@click.option("--plain", is_flag=True, help="Lines in place of a live display; so it is when output is no terminal.")
@click.option("--plot/--no-plot", "plotted", default=True, show_default=True, help="Draw OUT/training.png at the end.")
def main(
    mode: str,
    trainers: int,
    epochs: int | None,
    model: str,
    out: Path,
    late: float,
    elastic: bool,
    admin: str,
    plain: bool,
    plotted: bool,
) -> None:
    """Trains a classifier through a broker: by all-reduce, with parameter servers, a quorum, by local SGD and DiLoCo.

    The broker, the trainers, the servers and a monitor are processes of their own. At the end there is a plot in the
    folder OUT. The exit status is 1 if a model misses its accuracy or a process fails.
    """
    if model == "torch" and importlib.util.find_spec("torch") is None:
        raise click.UsageError("--model torch needs PyTorch: pip install 'tensorbus[torch]'")
    defaults = DEFAULTS[model]
    jobs = [
        Job(
            mode=each,
            trainers=trainers,
            epochs=epochs or int(defaults["epochs"]),
            learning_rate=defaults["learning_rate"],
            model=model,
            late_s=late,
            elastic=elastic,
        )
        for each in (MODES if mode == "all" else (mode,))
    ]
    plain = plain or not sys.stdout.isatty()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + signal.SIGTERM))
    started_s = time.monotonic()
    try:
        say = click.echo if plain else lambda text: None
        summaries = launch.run(jobs, out, plain=plain, say=say, admin=admin)
    except ChildFailed as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("interrupted; all processes are ended", err=True)
        sys.exit(128 + signal.SIGINT)
    if plotted:
        # Matplotlib takes a second to load, which the run does not have to wait for.
        from examples.training_loop import plot

        plot.draw(json.loads((out / "history.json").read_text())["reports"], out / "training.png")
    print_summary(summaries)
    click.echo(f"{time.monotonic() - started_s:.1f} s in all" + (f"; plot: {out / 'training.png'}" if plotted else ""))
    missed = [summary.job.mode for summary in summaries if summary.accuracy < TARGET_ACCURACY[model]]
    if missed:
        raise click.ClickException(f"below {TARGET_ACCURACY[model]:.0%} test accuracy: {', '.join(missed)}")


def print_summary(summaries: Sequence[launch.Summary]) -> None:
    """Prints a table with a line for each way of training."""
    table = Table()
    for column in ("mode", "trainers", "steps", "loss", "accuracy", "training", "parameters"):
        table.add_column(column, justify="left" if column in ("mode", "parameters") else "right", no_wrap=True)
    for summary in summaries:
        new = ", +1" if summary.joined else ""
        lost = f" (lost {', '.join(map(str, summary.lost_ranks))}{new})" if summary.lost_ranks else ""
        table.add_row(
            summary.job.mode,
            f"{summary.job.trainers}{lost}",
            str(summary.steps),
            f"{summary.loss:.4f}",
            f"{summary.accuracy:.2%}",
            f"{summary.duration_s:.1f} s",
            "identical" if summary.identical else "differ",
        )
    Console().print(table)


if __name__ == "__main__":
    main(prog_name="python -m examples.training_loop")
