"""Settings shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run and no time limit per example: a busy machine must not make a test fail.
settings.register_profile("tensorbus", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("tensorbus")


def compiled_modules() -> dict[Path, Path | None]:
    """The modules that are meant to be compiled, each with what it was compiled to, if it was."""
    sources = [path.with_suffix(".py") for folder in ("broker", "clients") for path in (ROOT / folder).rglob("*.pxd")]
    return {source: next(source.parent.glob(f"{source.stem}.cpython-*.so"), None) for source in sorted(sources)}


def written_for(source: Path) -> list[Path]:
    """The files in C that belong to a module, which its first line names, and the headers beside them."""
    with source.open(encoding="utf-8") as lines:
        first = next(lines, "")
    if not first.startswith("# distutils: sources ="):
        return []
    return [*(ROOT / name for name in first.split("=")[1].split()), *source.parent.glob("*.h")]


def pytest_configure(config: pytest.Config) -> None:
    for source, library in compiled_modules().items():
        sources = [source, source.with_suffix(".pxd"), *written_for(source)]
        if library is not None and library.stat().st_mtime < max(each.stat().st_mtime for each in sources):
            raise pytest.UsageError(f"{library.name} is older than {source.name}: run make test, or delete it")


def pytest_report_header(config: pytest.Config) -> str:
    modules = compiled_modules()
    return f"tensorbus: {sum(library is not None for library in modules.values())} of {len(modules)} modules compiled"
