"""What setup.py compiles, in a small tree of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import broker
from tests.conftest import ROOT

pytest.importorskip("Cython", reason="nothing is compiled without Cython")
pytest.importorskip("setuptools")

MODULE = "import cython\n\ndef doubled(number):\n    return twice(number) if cython.compiled else 2 * number\n"
TYPES = 'cdef extern from "broker/sums.h":\n    int twice(int number)\n'


@pytest.fixture(scope="module")
def translated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two modules that are linked with the same two C files, built where there is no compiler: they are C by then."""
    tree = tmp_path_factory.mktemp("translated")
    (tree / "clients").mkdir()
    package = tree / "broker"
    package.mkdir()
    shutil.copy(ROOT / "setup.py", tree)
    (package / "__init__.py").touch()
    for name in ("first", "second"):
        (package / f"{name}.py").write_text(MODULE)
        (package / f"{name}.pxd").write_text(TYPES)
    (package / "sums.h").write_text("int twice(int number);\nint added(int first, int second);\n")
    (package / "sums.c").write_text('#include "sums.h"\nint twice(int number) { return added(number, number); }\n')
    (package / "sums_more.c").write_text(
        '#include "sums.h"\nint added(int first, int second) { return first + second; }\n'
    )
    build(tree, CC="/bin/false")
    return tree


@pytest.fixture
def tree(translated: Path, tmp_path: Path) -> Path:
    """The same, of the test's own. With its times, so that nothing is translated again."""
    return shutil.copytree(translated, tmp_path / "tree")


def build(tree: Path, **environment: str) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "-j2"],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        check=True,
    )


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_a_module_is_linked_with_the_c_files_of_the_header_that_its_types_name(tree: Path) -> None:
    build(tree)
    assert {path.name.partition(".")[0] for path in (tree / "broker").glob("*.so")} == {"first", "second"}
    program = "from broker import first, second; print(first.doubled(4), second.doubled(5), first.__file__[-3:])"
    done = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8", "10", ".so"]


@pytest.mark.skipif(os.cpu_count() == 1, reason="with one processor nothing is compiled at once")
def test_an_editable_install_compiles_modules_at_once(tree: Path) -> None:
    # Each of two compilers waits for the other, and then both fail.
    os.mkfifo(tree / "meeting")
    compiler = tree / "compiler"
    compiler.write_text(
        f"#!/bin/sh\ncd {tree}\n"
        "if mkdir first; then timeout 150 sh -c 'echo > meeting'; else timeout 150 cat meeting && touch met; fi\n"
        "exit 1\n"
    )
    compiler.chmod(0o755)
    subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_editable('.')"],
        cwd=tree,
        env={**os.environ, "CC": str(compiler)},
        capture_output=True,
        check=True,
    )
    assert (tree / "met").exists()


def test_without_a_compiler_nothing_is_compiled_and_nothing_fails(translated: Path) -> None:
    assert {path.name for path in (translated / "broker").glob("[fs][ie]*.c")} == {"first.c", "second.c"}
    assert not list((translated / "broker").glob("*.so"))


def test_a_machine_that_is_not_little_endian_is_refused_by_name() -> None:
    specification = importlib.util.spec_from_file_location("tensorbus_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(setup)
    setup.check_machine()
    with pytest.raises(SystemExit, match="this machine is big-endian"):
        setup.check_machine("big")
    with pytest.raises(ImportError, match="this machine is big-endian"):
        broker._check_machine("big")
