"""What a fork has translated is what pytest takes when it imports a module of tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from _pytest.assertion import rewrite

from tests import rewriting

SOURCE = "def test_it():\n    one = 1\n    assert one == 2\n"


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "test_module.py"
    path.write_text(SOURCE)
    return path


def what_it_says(path: Path) -> str:
    """What the failed test of a module says, as pytest imports it."""
    (hook,) = [finder for finder in sys.meta_path if isinstance(finder, rewrite.AssertionRewritingHook)]
    spec = importlib.util.spec_from_file_location(path.stem, path, loader=hook)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    hook.exec_module(module)
    with pytest.raises(AssertionError) as caught:
        module.test_it()
    return str(caught.value)


def kept(path: Path) -> Path:
    (file,) = (path.parent / "__pycache__").iterdir()
    return file


def test_pytest_takes_what_was_translated(
    module: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewriting.translate(module, pytestconfig)
    # Nothing is left for pytest to do.
    monkeypatch.setattr(rewrite, "_rewrite_test", None)
    assert what_it_says(module) == "assert 1 == 2"


def test_what_is_there_is_left_and_what_has_changed_is_translated_anew(
    module: Path, pytestconfig: pytest.Config
) -> None:
    rewriting.translate(module, pytestconfig)
    first = kept(module).stat()
    os.utime(module, ns=(first.st_mtime_ns + 1, first.st_mtime_ns + 1))
    rewriting.translate(module, pytestconfig)
    assert kept(module).stat().st_ino == first.st_ino
    module.write_text(SOURCE.replace("2", "3"))
    os.utime(module, ns=(first.st_mtime_ns + 1, first.st_mtime_ns + 1))
    rewriting.translate(module, pytestconfig)
    assert what_it_says(module) == "assert 1 == 3"


def test_a_fork_begins_with_the_last_module_of_the_folders_that_are_collected(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/test_b.py", "a/helper.py", "c/test_a.py", "test_d.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(SOURCE)
    monkeypatch.setattr(pytestconfig, "args", [str(tmp_path)])
    found = [path.relative_to(tmp_path).as_posix() for path in rewriting.modules(pytestconfig)]
    assert found == ["test_d.py", "c/test_a.py", "a/test_b.py"]
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    rewriting.begin(pytestconfig)()
    assert {path.parent.parent.name for path in tmp_path.rglob("*.pyc")} == {"a", "c", tmp_path.name}
