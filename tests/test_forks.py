"""Processes of the tests are processes of their own, although they are forks."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.forks import Fork

PATIENCE_S = 60.0
PROGRAM = "tests.asked"
"""What its arguments say, as Python."""


def fork(program: str, *, name: str = "", stdin: bytes = b"", passed: Sequence[int] = ()) -> tuple[Fork, int]:
    """Starts a process; returns it and the reading end of its standard output and error."""
    reading, writing = os.pipe()
    inputs, input_end = os.pipe()
    os.write(input_end, stdin)
    os.close(input_end)
    started = Fork(PROGRAM, [program], {"NAME": name}, (inputs, writing, writing), passed)
    os.close(inputs)
    os.close(writing)
    return started, reading


def read_all(descriptor: int) -> str:
    with open(descriptor) as file:
        return file.read()


def test_it_has_its_own_arguments_variables_and_files() -> None:
    program = "import os; print(input(), dict(os.environ), sorted(os.listdir('/proc/self/fd'))[:3])"
    started, output = fork(program, name="x", stdin=b"typed\n")
    assert read_all(output) == "typed {'NAME': 'x'} ['0', '1', '2']\n"
    assert started.wait(PATIENCE_S) == 0
    assert started.poll() == 0


def test_the_exit_status_is_that_of_python() -> None:
    for program, status, said in (
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no')", 1, "no"),
        ("raise SystemExit", 0, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        (
            "import os, sys; os.dup2(os.open('/dev/full', 1), 1); print('lost')",
            120,
            "No space left on device",
        ),
        ("import sys; sys.stdout.close()", 0, ""),
        ("import sys; sys.stdout = None", 0, ""),
    ):
        started, output = fork(program)
        assert read_all(output).rstrip().endswith(said)
        assert started.wait(PATIENCE_S) == status


def test_it_has_the_descriptors_that_are_passed_to_it_under_their_numbers_and_no_others() -> None:
    pipes = [os.pipe() for _ in range(20)]
    # For each the template has descriptors of its own, some with the same numbers.
    others = [fork("import signal; signal.pause()") for _ in range(20)]
    passed = [end for _, end in reversed(pipes)]
    program = f"""
import os
print(sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + name)))
for number in {passed}:
    os.write(number, b"%d" % number)
"""
    started, output = fork(program, passed=passed)
    assert read_all(output) == f"{[0, 1, 2, *sorted(passed)]}\n"
    assert started.wait(PATIENCE_S) == 0
    for reading, writing in pipes:
        os.close(writing)
        assert read_all(reading) == str(writing)
    for other, reading in others:
        other.kill()
        other.wait(PATIENCE_S)
        os.close(reading)


def test_it_runs_until_it_is_killed() -> None:
    started, output = fork("import signal; print('ready', flush=True); signal.pause()")
    assert os.read(output, 6) == b"ready\n"
    assert started.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(0.01)
    started.kill()
    assert started.wait(PATIENCE_S) == -signal.SIGKILL
    assert not Path(f"/proc/{started.pid}").exists()
    started.kill()
    os.close(output)


def test_an_interrupt_raises_in_it() -> None:
    started, output = fork("import signal; print('ready', flush=True); signal.pause()")
    assert os.read(output, 6) == b"ready\n"
    started.send_signal(signal.SIGINT)
    assert read_all(output).rstrip().endswith("KeyboardInterrupt")
    assert started.wait(PATIENCE_S) == -signal.SIGINT


def test_what_commands_import_was_imported_before() -> None:
    names = "aiohttp", "broker.admin.http", "broker.cli.serve", "broker.cli.groups", "rich.table"
    started, output = fork(f"import sys; print(set({names!r}) - sys.modules.keys())")
    assert read_all(output) == "set()\n"
    assert started.wait(PATIENCE_S) == 0


def test_at_its_end_it_destroys_what_it_has_made_and_calls_whom_it_has_to() -> None:
    program = """
import atexit, threading, time
class Made:
    def __del__(self): print("destroyed")
made = Made()
atexit.register(print, "called")
threading.Thread(target=lambda: print("joined")).start()
"""
    started, output = fork(program)
    assert read_all(output) == "joined\ncalled\ndestroyed\n"
    assert started.wait(PATIENCE_S) == 0


def test_a_crash_at_its_end_is_noticed() -> None:
    for program in (
        "import os\nclass Made:\n    def __del__(self): os.abort()\nmade = Made()",
        "import atexit, os; atexit.register(os.abort)",
        "import os, sys\nclass Made:\n    def __del__(self, abort=os.abort): abort()\nsys.ours = Made()",
    ):
        started, output = fork(program)
        assert started.wait(PATIENCE_S) == -signal.SIGABRT
        assert read_all(output) == ""


@pytest.mark.parametrize(("imported", "status"), [("broker.server", 0), ("zmq", -signal.SIGABRT)])
def test_the_interpreter_ends_as_well_where_machine_code_was_loaded(imported: str, status: int) -> None:
    # The C library's abort, which the interpreter is to call when nothing else is left to be done.
    program = f"import ctypes, {imported}; ctypes.pythonapi.Py_AtExit(ctypes.CDLL(None).abort)"
    started, output = fork(program)
    assert started.wait(PATIENCE_S) == status
    assert read_all(output) == ""
