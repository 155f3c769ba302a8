"""Settings shared by all tests."""

from __future__ import annotations

import gc
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports numpy. A thread for each processor that waits for arrays to multiply keeps it busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests import auditing, rewriting
from tests.certificates import make_certificates
from tests.forks import template
from tests.side_by_side import pytest_addoption, pytest_runtestloop  # noqa: F401 - pytest finds them here
from tests.thorough import rounds

ROOT = Path(__file__).resolve().parent.parent
TRANSLATED = pytest.StashKey[Callable[[], None]]()
"""Waits for the fork that translates modules of tests."""

auditing.watch(ROOT)

# What is collected stays, as most of what is imported does. To look for garbage among it again and again is in vain.
gc.set_threshold(100_000, 20, 10)

# The same examples on every run and no time limit per example: a busy machine must not make a test fail.
settings.register_profile("tensorbus", max_examples=rounds(100), deadline=None, derandomize=True, print_blob=True)
settings.load_profile("tensorbus")


def compiled_modules() -> dict[Path, Path | None]:
    """The modules that are meant to be compiled, each with what it was compiled to, if it was."""
    sources = [path.with_suffix(".py") for folder in ("broker", "clients") for path in (ROOT / folder).rglob("*.pxd")]
    return {source: next(source.parent.glob(f"{source.stem}.cpython-*.so"), None) for source in sorted(sources)}


def sources_of(source: Path) -> list[Path]:
    """Of what a compiled module is made: itself, its types, and the C files of the headers that these name."""
    typed = source.with_suffix(".pxd")
    headers = [ROOT / name for name in re.findall(r'extern from "(.+)\.h"', typed.read_text(encoding="utf-8"))]
    common = (ROOT / "broker").glob("*.h") if headers else ()
    files = (file for header in headers for file in header.parent.glob(f"{header.name}*.[ch]"))
    return [source, typed, *common, *files]


def pytest_configure(config: pytest.Config) -> None:
    for source, library in compiled_modules().items():
        if library is not None and library.stat().st_mtime < max(file.stat().st_mtime for file in sources_of(source)):
            raise pytest.UsageError(f"{library.name} is older than {source.name}: run make test, or delete it")


def pytest_report_header(config: pytest.Config) -> str:
    modules = compiled_modules()
    return f"tensorbus: {sum(library is not None for library in modules.values())} of {len(modules)} modules compiled"


def pytest_collection(session: pytest.Session) -> None:
    if session.config.option.processes > 1 and not session.config.option.collectonly:
        # One for all of them, which imports what it needs on another processor while tests are collected.
        template()
        session.stash[TRANSLATED] = rewriting.begin(session.config)


LONG = (
    "tests/examples/",
    "tests/bench/",
    "tests/system/",
    "tests/test_dashboard_page.py",
    "tests/test_monitoring.py",
    "tests/test_setup.py",
    "tests/test_side_by_side.py",
    "tests/test_device_memory.py",
)
"""Whose tests take seconds, in which they wait for processes of their own: the longest first."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long begins at once: at the end there would be nothing left that needs the processors beside it."""
    assert all((ROOT / path).exists() for path in LONG)
    if config.option.processes > 1:
        items.sort(key=lambda item: next((n for n, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG)))


def pytest_collection_finish(session: pytest.Session) -> None:
    session.stash.get(TRANSLATED, lambda: None)()
    # What was collected stays to the end. To look through all of it takes a quarter of a second, and some tests collect
    # garbage several times.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 10)


ENDING = ("tensorbus-broker-", "tensorbus-door")
"""Threads that end by themselves, soon after what they serve was closed."""
ENDING_S = 2.0
"""How long they are waited for: what they serve may belong to a whole module."""
_left: set[threading.Thread] = set()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """Waits for such threads: the next test may count descriptors, which they would still close, and read the log."""
    result = yield
    _left.intersection_update(threading.enumerate())
    end_s = time.monotonic() + ENDING_S
    for thread in threading.enumerate():
        if thread.name.startswith(ENDING) and thread not in _left:
            thread.join(max(0.0, end_s - time.monotonic()))
            if thread.is_alive():
                _left.add(thread)
    return result


NAME_CHARACTERS_MAX = 30
"""Of a folder's name: a socket in it has 107 for all of its path."""
_folders = itertools.count()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the test's own. For each one, pytest's looks through all that there are, and makes a link as well."""
    name = re.sub(r"\W", "_", request.node.name)[:NAME_CHARACTERS_MAX]
    folder = tmp_path_factory.getbasetemp() / f"{name}-{next(_folders)}"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an authority, with certificates for a broker and for trainer-0."""
    return make_certificates(tmp_path_factory.mktemp("authority"))
