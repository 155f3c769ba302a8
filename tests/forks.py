"""Starts Python processes as forks of one that has imported what they need.

A new interpreter takes half a second of processor time until it has imported numpy and the rest; a fork takes 20 ms.
The tests start hundreds. Each is a process of its own all the same, with its own arguments, environment and files,
which can be killed. The template is started once by the process that runs the tests; its forks have it as well:

    tests  --request, the files 0 to 2 and one end of a socket--> template --fork--> runs the module as __main__
    tests  <--pid, and the exit status when it has ended, on the other end-- template

    python -m tests.forks DESCRIPTOR
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import itertools
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

from tests import auditing

ROOT = Path(__file__).resolve().parent.parent
IMPORTED = ("clients.aio", "broker.transport.tcp", "broker.transport.unix")
PACKAGES = ("broker.admin", "broker.cli")
"""What the template has imported: modules, and all modules of packages but those that need what is not installed."""
REQUEST_BYTES_MAX = 1 << 17
FILES_MAX = 250
"""As many as the kernel takes at once (SCM_MAX_FD), about."""
BEFORE_THE_INTERPRETER = "cpython.PyInterpreterState_Clear"
"""What Python tells of when threads, modules and all that was in them have ended (PEP 578)."""
NEEDED = ("sys", "builtins", "__main__")
"""Modules without which no interpreter ends."""
NUMBER = struct.Struct("<i")


class Fork:
    """A process that was started by the template; what subprocess.Popen offers of it that the tests need."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        files: tuple[int, int, int],
        passed: Sequence[int] = (),
    ) -> None:
        """Args:
        module: what it runs, as `python -m` does.
        arguments: of its command line.
        environment: all of its variables.
        files: its standard input, output and error.
        passed: descriptors that it has under the same numbers; they stay the caller's.
        """
        self.returncode: int | None = None
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps([module, arguments, dict(environment), passed]).encode()
        with theirs:
            socket.send_fds(template(), [request], [theirs.fileno(), *files, *passed])
        self.pid = self._read_number()

    def _read_number(self) -> int:
        data = self._socket.recv(NUMBER.size)
        if not data:
            raise EOFError("the template of all test processes has ended")
        return int(NUMBER.unpack(data)[0])

    def poll(self) -> int | None:
        """Its exit status, -N when signal N has ended it, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout_s: float | None = None) -> int:
        """Waits for its end, without a time-out for as long as it takes; returns its exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._socket.fileno(), select.POLLIN)
            if not poll.poll(None if timeout_s is None else timeout_s * 1000):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout_s or 0.0)
            self.returncode = self._read_number()
            self._socket.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it has not ended."""
        if self.poll() is None:
            # It may end, and be waited for by its template, before the next line.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Sends it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends it SIGKILL."""
        self.send_signal(signal.SIGKILL)


@cache
def template() -> socket.socket:
    """Starts the template; returns the socket on which it takes requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * REQUEST_BYTES_MAX)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
            cwd=ROOT,
            # A library's threads would not be in the forks.
            env={**os.environ, "PYTHONUNBUFFERED": "", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def serve(requests: socket.socket) -> tuple[str, list[str]]:
    """Forks for each request; returns only in the forks, with the module that is to run and its arguments."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in running:
                _tell_end(*running.pop(descriptor))
                poll.unregister(descriptor)
                os.close(descriptor)
                continue
            data, (*files,), _, _ = socket.recv_fds(requests, REQUEST_BYTES_MAX, FILES_MAX)
            if not data:
                os._exit(0)
            child = os.fork()
            if not child:
                # Whoever closes these later would close what has their numbers by then.
                requests.detach()
                for _, other in running.values():
                    other.detach()
                return _become(data, files)
            status = socket.socket(fileno=files.pop(0))
            for file in files:
                os.close(file)
            status.send(NUMBER.pack(child))
            ended = os.pidfd_open(child)
            running[ended] = child, status
            poll.register(ended, select.POLLIN)


def _tell_end(child: int, status: socket.socket) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with status:
        try:
            status.send(NUMBER.pack(code))
        except BrokenPipeError:
            # Nobody wants to know.
            return


def _become(data: bytes, files: Sequence[int]) -> tuple[str, list[str]]:
    module, arguments, environment, passed = json.loads(data)
    wanted = dict(zip((0, 1, 2, *passed), files[1:], strict=True))
    # First out of the way, as one may have the number that another one is to have.
    free = max(*files, *passed) + 1
    for number, copy in [(number, fcntl.fcntl(file, fcntl.F_DUPFD, free)) for number, file in wanted.items()]:
        os.dup2(copy, number)
    for before, number in itertools.pairwise([*sorted(wanted), free + 1024]):
        os.closerange(before + 1, number)
    os.environ.clear()
    os.environ.update(environment)
    return module, arguments


def leave_alone(modules: Mapping[str, ModuleType], statuses: Sequence[int]) -> None:
    """Has the end of a fork not take these modules apart, which may become more until then.

    Python would clear one after the other, and so copy most of the memory that the forks share. What the program that
    runs has made is destroyed as ever, and so is what was imported later. After that only Python's own is left, all
    types and all names, which took longer than the rest of a short command. With that a fork does not begin when it has
    ended in order, so that its status is known, and has loaded no machine code of which the template had none.

    Args:
        modules: those that the template has imported.
        statuses: the exit status, once that is known.
    """
    keep = ctypes.pythonapi.Py_IncRef
    # Nobody gives these references back.
    keep(ctypes.py_object(modules))

    def end() -> None:
        # Only what is behind what the template has imported: to look at a module copies the memory that it lies in.
        last_imported = next(reversed(modules), None)
        names = list(itertools.takewhile(lambda name: name != last_imported, reversed(sys.modules)))
        later = {name: sys.modules[name] for name in (*NEEDED, *reversed(names))}
        loaders = [getattr(module, "__loader__", None) for module in later.values()]
        is_whole = any(isinstance(loader, ExtensionFileLoader) for loader in loaders)
        _swap(sys.modules, later)
        # Now it has the others.
        keep(ctypes.py_object(later))
        if not statuses or is_whole:
            return
        status, leave, last = statuses[0], os._exit, BEFORE_THE_INTERPRETER

        def look(event: str, arguments: object) -> None:
            # By then no module has names any more.
            if event == last:
                leave(status)

        try:
            for stream in (sys.stdout, sys.stderr):
                print(end="", file=stream, flush=True)
        except (OSError, ValueError):
            # With that, and what cannot be written, Python does as it does.
            return
        sys.addaudithook(look)

    # What is registered first comes last.
    atexit.register(end)


def _swap(one: dict[str, ModuleType], other: dict[str, ModuleType]) -> None:
    """Gives each dictionary what is in the other one, none of which is touched."""
    first, second = (id(each) + object.__basicsize__ for each in (one, other))
    length = dict.__basicsize__ - object.__basicsize__
    content = ctypes.string_at(first, length)
    ctypes.memmove(first, second, length)
    ctypes.memmove(second, content, length)


def keep_for_good(modules: Mapping[str, ModuleType]) -> None:
    """Has nobody free what Python keeps beside modules: the files in their folders, and their first names.

    Those a module of machine code has that Python initialises in one step (PyModuleDef_Base.m_copy).
    """
    definition_of, keep = ctypes.pythonapi.PyModule_GetDef, ctypes.pythonapi.Py_IncRef
    definition_of.restype = ctypes.c_void_p
    keep(ctypes.py_object(sys.path_importer_cache))
    for module in modules.values():
        # Behind what each object has come a function and a number.
        if issubclass(type(module), ModuleType) and (definition := definition_of(ctypes.py_object(module))):
            names = ctypes.c_void_p.from_address(definition + object.__basicsize__ + 2 * ctypes.sizeof(ctypes.c_void_p))
            if names:
                keep(names)


def beside(command: Callable[[], object]) -> None:
    """Runs a command whose processes are forks of what its own has imported: beside it is a template, and then each."""
    global template
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if process := os.fork():
        theirs.close()
        template = lambda: ours  # type: ignore[assignment]  # noqa: E731
        try:
            command()
        finally:
            ours.close()
            os.waitpid(process, 0)
        return
    ours.close()
    module, sys.argv[1:] = serve(theirs)
    # That is what it is for.
    warnings.filterwarnings("ignore", ".* found in sys.modules after import of package", RuntimeWarning)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    """Is the template, and then each of its forks."""
    auditing.watch(ROOT)
    imported: dict[str, ModuleType] = {}
    statuses: list[int] = []
    leave_alone(imported, statuses)
    for name in IMPORTED:
        importlib.import_module(name)
    for name in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__, f"{name}."):
            with suppress(ModuleNotFoundError):
                importlib.import_module(module.name)
    imported.update((name, module) for name, module in sys.modules.items() if name not in NEEDED)
    keep_for_good(sys.modules)
    # The collector would write to every object, and so copy the memory that the forks share.
    gc.collect()
    gc.freeze()
    requests = socket.socket(fileno=int(sys.argv[1]))
    module, sys.argv[1:] = serve(requests)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            statuses.append((end.code or 0) & 0xFF)
        raise
    statuses.append(0)


if __name__ == "__main__":
    main()
