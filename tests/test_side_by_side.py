"""Tests in several processes: each is run once, and what comes of it is told as if there was one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, pytest_collection_modifyitems
from tests.side_by_side import Shares

PATIENCE_S = 60.0
FOUR = "-p", "tests.side_by_side", "--processes", "4"
GOOD = """
import os

import pytest

@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    yield folder
    with open("torn_down", "a") as file:
        file.write(f"{os.getpid()} {folder}\\n")

@pytest.mark.parametrize("number", range(100))
def test_one(number, shared, capfd):
    os.write(1, b"said")
    assert capfd.readouterr().out == "said"
    with open("run", "a") as file:
        file.write(f"{os.getpid()} {number}\\n")
"""
BAD = """
import os
import warnings

import pytest

@pytest.fixture
def broken():
    yield
    raise ValueError("of the fixture")

def test_fails():
    print("printed")
    os.write(2, b"written")
    assert 1 == 2

def test_is_torn_down(broken):
    pass

@pytest.mark.skip(reason="of the weather")
def test_skips():
    pass

@pytest.mark.xfail
def test_is_expected_to_fail():
    assert False

def test_warns():
    warnings.warn("mind the gap")

def test_is_well():
    pass
"""
DEADLY = """
import os
import signal

import pytest

@pytest.mark.parametrize("number", range(40))
def test_one(number):
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""
ENDS_BADLY = """
import atexit
import os

import pytest

@pytest.mark.parametrize("number", range(4))
def test_one(number):
    atexit.register(os._exit, 7)
"""


def run(folder: Path, source: str, *arguments: str) -> tuple[int, str]:
    """Runs pytest on a file of tests; returns its exit status and what it has said."""
    (folder / "test_file.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib", *arguments]
    # What is installed beside pytest takes as long to import as all the rest.
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    environment = {**os.environ, **alone}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_each_test_is_run_once_and_each_process_tears_down_what_it_has_set_up(tmp_path: Path) -> None:
    status, said = run(tmp_path, GOOD, *FOUR)
    assert status == 0, said
    assert "100 passed" in said
    ran = [line.split() for line in (tmp_path / "run").read_text().splitlines()]
    assert sorted(int(number) for _, number in ran) == list(range(100))
    torn_down = [line.split() for line in (tmp_path / "torn_down").read_text().splitlines()]
    assert len({folder for _, folder in torn_down}) == len(torn_down)
    assert {pid for pid, _ in torn_down} == {pid for pid, _ in ran}


def test_a_folder_for_temporary_files_that_is_named_is_emptied_before_the_tests_and_not_by_each_process(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    (folder / "old").touch()
    status, said = run(tmp_path, GOOD, "--basetemp", str(folder), *FOUR)
    assert status == 0, said
    assert not (folder / "old").exists()
    shared = {Path(line.split()[1]) for line in (tmp_path / "torn_down").read_text().splitlines()}
    assert all(each.is_dir() and each.is_relative_to(folder) for each in shared)


def test_what_comes_of_tests_is_told_as_by_one_process(tmp_path: Path) -> None:
    outcomes = [run(tmp_path, BAD, "-ra", *arguments) for arguments in ((), FOUR)]
    counts = []
    for status, said in outcomes:
        assert status == 1
        for words in ("assert 1 == 2", "printed", "written", "of the fixture", "mind the gap", "of the weather"):
            assert words in said
        last = said.splitlines()[-1]
        counts.append(re.findall(r"\d+ [a-z]+", last.partition(" in ")[0]))
    assert counts[0] == counts[1]
    assert len(counts[0]) >= 5


def test_one_failure_can_be_the_last(tmp_path: Path) -> None:
    status, said = run(tmp_path, GOOD.replace("== 2", "== 3").replace('== "said"', '== ""'), "-x", *FOUR)
    assert status == 1
    assert "stopping after" in said
    # The others may be in the middle of one, and know of the next.
    assert int(re.findall(r"(\d+) failed", said)[-1]) <= 8


def test_a_process_that_dies_fails_its_tests_and_the_others_do_the_rest(tmp_path: Path) -> None:
    status, said = run(tmp_path, DEADLY, "-ra", *FOUR)
    assert status == 1
    assert "process 0 was ended by signal 9 in the middle of this test" in said
    assert "not run: process 0 was ended by signal 9 in the middle of the test before" in said
    assert "2 failed, 38 passed" in said


def test_a_process_that_ends_badly_after_its_tests_fails_the_run(tmp_path: Path) -> None:
    status, said = run(tmp_path, ENDS_BADLY, *FOUR)
    assert status == 1
    assert "ended with status 7 when its tests were over" in said
    assert "4 passed" in said


@pytest.mark.parametrize(("tests", "processes"), [(0, 2), (1, 2), (5, 5), (7, 3), (100, 4)])
def test_shares_hold_each_test_once_whoever_takes_them(tests: int, processes: int) -> None:
    for turns in (range(processes), [0], [*range(processes), 0, 0]):
        shares, taken = Shares(tests, processes), Counter[int]()
        while (found := [number for turn in turns if (number := shares.take(turn)) is not None]) != []:
            taken.update(found)
        assert taken == Counter(range(tests))
        assert all(shares.take(number) is None for number in range(processes))


def test_a_share_is_taken_in_order_and_half_of_the_rest_of_another() -> None:
    shares = Shares(20, 2)
    assert [shares.take(0) for _ in range(10)] == list(range(10))
    assert [shares.take(1) for _ in range(2)] == [10, 11]
    assert [shares.take(0) for _ in range(4)] == [16, 17, 18, 19]
    assert [shares.take(1) for _ in range(2)] == [12, 13]


def test_what_takes_long_comes_first_and_the_rest_in_its_order() -> None:
    names = [
        f"tests/{path}.py::test_it" for path in ("bench2/test_a", "bench/test_b", "examples/test_c", "admin/test_d")
    ]
    for processes, order in ((1, [0, 1, 2, 3]), (2, [2, 1, 0, 3])):
        items = [SimpleNamespace(nodeid=name) for name in names]
        config = SimpleNamespace(option=SimpleNamespace(processes=processes))
        pytest_collection_modifyitems(config, items)  # type: ignore[arg-type]
        assert [item.nodeid for item in items] == [names[number] for number in order]


@pytest.mark.parametrize("file", ["one", "another"])
def test_each_test_has_a_folder_of_its_own_that_nobody_else_may_read(tmp_path: Path, file: str) -> None:
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []
    (tmp_path / file).touch()
