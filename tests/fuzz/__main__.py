"""Fuzzes parsers: `python -m tests.fuzz [--parser NAME]... [--inputs N] [--seed N]`.

Prints a line for each parser, and each input that does what none may do, in hexadecimal as the corpus has them. Exit
status 1 when there is one.
"""

from __future__ import annotations

import argparse
import resource
import sys

from tests.fuzz.parsers import PARSERS
from tests.fuzz.running import SHARES, names, run

ADDRESS_SPACE_BYTES = 4 << 30
"""An input that asks for more is a fault, and not the end of the machine."""


def main() -> int:
    arguments = argparse.ArgumentParser(description="Fuzzes the parsers of tensorbus.")
    arguments.add_argument("--parser", action="append", default=[], choices=PARSERS, help="default: all")
    arguments.add_argument("--inputs", type=int, default=200_000, help="for each parser; for a whole broker a tenth")
    arguments.add_argument("--seed", type=int, default=1)
    wanted = arguments.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    faults = 0
    for name in names(wanted.parser):
        report = run(name, wanted.inputs // SHARES.get(name, 1), seed=wanted.seed, faults_max=10)
        print(report, flush=True)
        for data, problem in report.faults:
            print(f"  {problem}\n  {data.hex()}", flush=True)
        faults += len(report.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
