"""Has another processor translate the modules of tests to which collecting them comes last.

pytest rewrites the assertions of each module, compiles it and keeps the result in __pycache__. In a fresh clone that is
9 of the 12 seconds that collecting takes, in which nothing else can be done: tests run in forks of the process that has
collected them. A fork of it that translates them as well, from the other end, is met in the middle.

    tests' process   admin/test_arrays.py -->              <-- transport/test_zeromq.py   fork
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from _pytest.assertion import rewrite


def begin(config: pytest.Config) -> Callable[[], None]:
    """Starts the fork; returns what waits for its end."""
    if sys.dont_write_bytecode:
        return lambda: None
    if fork := os.fork():
        return lambda: _wait(fork)
    try:
        # Of pytest's own functions; where it has others, collecting takes longer.
        with suppress(AttributeError, ImportError, TypeError, OSError):
            for path in modules(config):
                translate(path, config)
    finally:
        os._exit(0)


def _wait(fork: int) -> None:
    os.waitpid(fork, 0)


def modules(config: pytest.Config) -> list[Path]:
    """The modules of tests in the folders that are collected, from the last one to the first."""
    folders = {Path(config.invocation_params.dir, argument) for argument in config.args}
    found = {path for folder in folders for pattern in config.getini("python_files") for path in folder.rglob(pattern)}
    return sorted(found, reverse=True)


def translate(path: Path, config: pytest.Config) -> None:
    """Keeps what pytest would make of a module when it imports it, unless that has been done."""
    folder = rewrite.get_cache_dir(path)
    kept = folder / f"{path.stem}{rewrite.PYC_TAIL}"
    if kept.exists() and kept.stat().st_mtime_ns > path.stat().st_mtime_ns:
        return
    if rewrite._read_pyc(path, kept) is None and rewrite.try_makedirs(folder):
        source_hash, code = rewrite._rewrite_test(path, config)
        rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, source_hash, kept)
