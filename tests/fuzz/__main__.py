"""Fuzzes parsers: `python -m tests.fuzz [--parser NAME]... [--inputs N] [--seed N] [--jobs N] [--no-broker]`.

Each parser's inputs are shared out to so many processes. In the end there is a table, in Markdown, with a line for each
parser, and before it each input that does what none may do, in hexadecimal as the corpus has them. Exit status 1 when
there is one.

`--engine atheris` gives the same harnesses to libFuzzer, which is guided by the coverage of plain Python (guided.py).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tests.fuzz.parsers import PARSERS
from tests.fuzz.running import SHARES, Report, names, run, shares_of

ADDRESS_SPACE_BYTES = 4 << 30
"""An input that asks for more is a fault, and not the end of the machine."""
FAULTS_MAX = 10


def wanted() -> argparse.Namespace:
    """What the command line says."""
    arguments = argparse.ArgumentParser(description="Fuzzes the parsers of tensorbus.")
    arguments.add_argument("--parser", action="append", default=[], choices=PARSERS, help="default: all")
    arguments.add_argument("--no-broker", action="store_true", help="all but a whole broker, which takes long")
    arguments.add_argument("--inputs", type=int, default=200_000, help="for each parser; for a whole broker a tenth")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one a processor")
    arguments.add_argument("--engine", choices=("own", "atheris"), default="own")
    return arguments.parse_args()


def main() -> int:
    arguments = wanted()
    parsers = [name for name in names(arguments.parser) if not (arguments.no_broker and name == "broker")]
    if arguments.engine == "atheris":
        return guided(parsers, arguments.inputs, arguments.seed)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    reports = []
    try:
        for report in own(parsers, arguments.inputs, arguments.seed, arguments.jobs):
            print(report, file=sys.stderr, flush=True)
            for data, problem in report.faults:
                print(f"  {problem}\n  {data.hex()}", flush=True)
            reports.append(report)
    except BrokenProcessPool:
        print(f"a process has died: a crash of compiled code, in {parsers[len(reports)]}, or too little memory")
        return 1
    print(Report.HEAD, *(report.row for report in reports), sep="\n")
    return 1 if any(report.faults for report in reports) else 0


def own(parsers: list[str], inputs: int, seed: int, jobs: int) -> Iterator[Report]:
    """Runs parser after parser, each in so many processes."""
    with ProcessPoolExecutor(jobs) as pool:
        for name in parsers:
            shares = shares_of(inputs // SHARES.get(name, 1), jobs)
            futures = [
                pool.submit(run, name, share, seed=seed + number * 1_000_003, faults_max=FAULTS_MAX)
                for number, share in enumerate(shares)
            ]
            yield Report.of([future.result() for future in futures])


def guided(parsers: list[str], inputs: int, seed: int) -> int:
    """Has atheris run the harnesses; what it finds is written to the working directory, by libFuzzer's rules."""
    failed = []
    for name in parsers:
        runs = f"-runs={inputs // SHARES.get(name, 1)}"
        command = [sys.executable, "-m", "tests.fuzz.guided", name, runs, f"-seed={seed}", "-print_final_stats=1"]
        print(*command[2:], flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"{len(parsers)} parsers, with faults: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
