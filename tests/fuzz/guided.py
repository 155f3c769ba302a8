"""Fuzzes one parser guided by coverage: `python -m tests.fuzz.guided PARSER [options of libFuzzer]...`.

It takes atheris (`pip install atheris`, in the extra `fuzz`), which sees which lines of plain Python an input reaches,
and keeps those that reach new ones. What is compiled it does not see: run it where nothing is compiled.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris


def main() -> None:
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["broker", "clients"]):
        from tests.fuzz.parsers import PARSERS
        from tests.fuzz.running import corpus
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(corpus(name)):
            Path(folder, f"{number:04}").write_bytes(data)
        atheris.Setup([sys.argv[0], folder, *options], PARSERS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
