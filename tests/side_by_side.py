"""Runs the tests in several processes side by side: forks of the one that has collected them.

    python -m pytest --processes 4

To collect more than ten thousand tests takes a processor 3 seconds, and 12 the first time. Here that is done once,
whatever the number of processes, and what was imported and collected lies in memory that they share.

    tests' process  --which test is next, None for no more--> each of its forks
                    <--the reports of a test, when it is over--

Each fork has a part of the tests to begin with, in their order, so that what a module sets up is seldom set up twice;
one that has no more takes half of what another one still has. It is told of the next test before it is over with one,
because from that follows what has to be torn down between the two. When a fork dies, the test that it was at fails, and
so does the next one, which is not run; the others do the rest.

As with pytest-xdist: output of a test is shown with its failure, -x, --lf, --durations, --junitxml and the like work,
--pdb does not.
"""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections import deque
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import SimpleNamespace
from typing import NamedTuple

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--processes", type=int, default=1, help="Run the tests in so many processes (tests.side_by_side)."
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """In place of pytest's own loop, unless that is the better one."""
    options = session.config.option
    count = min(options.processes, len(session.items))
    if count < 2 or options.collectonly or session.testsfailed:
        return None
    crew = Crew(session)
    connection = crew.fork(count)
    if connection is not None:
        return Hand(session, connection).run()
    crew.run()
    return True


class Shares:
    """Which tests nobody has begun, in a share for each process."""

    def __init__(self, tests: int, processes: int) -> None:
        ends = [tests * number // processes for number in range(processes + 1)]
        self._shares = [deque(range(*ends[number : number + 2])) for number in range(processes)]

    def take(self, process: int) -> int | None:
        """The next test of a process: of its share, else of half of the largest one; None when all is begun."""
        own = self._shares[process]
        if not own:
            largest = max(self._shares, key=len)
            own.extendleft(largest.pop() for _ in range(-(-len(largest) // 2)))
        return own.popleft() if own else None


class Told(NamedTuple):
    """What a fork tells of a test: what the hooks of pytest get."""

    reports: list[dict[str, object]]
    warnings: list[dict[str, object]]


class Fork:
    """A fork, as its parent sees it.

    Attributes:
        given: the tests that it was given and has not told of, at most the one that it is at and the next.
    """

    def __init__(self, number: int, pid: int, connection: Connection) -> None:
        self.number = number
        self.pid = pid
        self.connection = connection
        self.given: deque[int] = deque()


class Crew:
    """The process that has collected the tests: gives them to its forks, and passes on what these tell."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._config = session.config
        self._forks: list[Fork] = []
        self._shares: Shares

    def fork(self, count: int) -> Connection | None:
        """Starts so many; returns in each of them its connection, and None in the parent."""
        self._shares = Shares(len(self._session.items), count)
        factory: pytest.TempPathFactory = self._config._tmp_path_factory  # type: ignore[attr-defined]
        folder = factory.getbasetemp()
        # What is flushed later would be written by each of them.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in range(count):
            ours, theirs = Pipe()
            pid = os.fork()
            if not pid:
                ours.close()
                for earlier in self._forks:
                    earlier.connection.close()
                # Each its own. One that was asked for by name (--basetemp) each of them would empty, and make anew.
                factory._basetemp = folder / f"p{number}"
                factory._basetemp.mkdir(mode=0o700)
                return theirs
            theirs.close()
            self._forks.append(Fork(number, pid, ours))
        return None

    def run(self) -> None:
        """Returns when all tests are done; raises what pytest's own loop raises when it is to stop before."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            # Tests of several files take turns: a line has only their letters.
            reporter.showfspath = False
        running = {fork.connection: fork for fork in self._forks}
        try:
            for fork in self._forks:
                self._give(fork)
                self._give(fork)
            while running:
                for connection in wait(list(running)):
                    fork = running[connection]  # type: ignore[index]
                    try:
                        told = fork.connection.recv()
                    except (EOFError, ConnectionResetError):
                        del running[fork.connection]
                        self._has_ended(fork)
                    else:
                        self._has_told(fork, told)
        finally:
            for connection, fork in running.items():
                connection.close()
                os.waitpid(fork.pid, 0)
        if self._shares.take(0) is not None and not self._is_stopping:
            self._session.shouldfail = "no process is left to run the other tests"
        if self._session.shouldfail:
            raise self._session.Failed(self._session.shouldfail)
        if self._session.shouldstop:
            raise self._session.Interrupted(self._session.shouldstop)

    @property
    def _is_stopping(self) -> bool:
        return bool(self._session.shouldfail or self._session.shouldstop)

    def _give(self, fork: Fork) -> None:
        test = None if self._is_stopping else self._shares.take(fork.number)
        if test is not None:
            fork.given.append(test)
        # It may have died; that is found out when it is listened to.
        with suppress(BrokenPipeError, ConnectionResetError):
            fork.connection.send(test)

    def _has_told(self, fork: Fork, told: Told) -> None:
        hook = self._config.hook
        item = self._session.items[fork.given.popleft()]
        # An item reads files to find its own, which the fork has done.
        location: tuple[str, int | None, str] = told.reports[0]["location"]  # type: ignore[assignment]
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=location)
        for data in told.reports:
            hook.pytest_runtest_logreport(report=hook.pytest_report_from_serializable(config=self._config, data=data))
        for warning in told.warnings:
            hook.pytest_warning_recorded.call_historic(kwargs=warning)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=location)
        # One failure may have been enough.
        self._give(fork)

    def _has_ended(self, fork: Fork) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(fork.pid, 0)[1])
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        words = f"process {fork.number} {how} in the middle of this test"
        for number in fork.given:
            item = self._session.items[number]
            report = pytest.TestReport(item.nodeid, item.location, {}, "failed", words, "call")
            self._config.hook.pytest_runtest_logreport(report=report)
            words = f"not run: process {fork.number} {how} in the middle of the test before"
        if status and not fork.given:
            self._session.shouldfail = f"process {fork.number} {how} when its tests were over"


class Hand:
    """In a fork: runs the tests that it is given, and tells of each."""

    def __init__(self, session: pytest.Session, connection: Connection) -> None:
        self._session = session
        self._config = session.config
        self._connection = connection
        self._told = Told([], [])

    def run(self) -> bool:
        """Returns when there are no more tests; the rest is as after pytest's own loop."""
        self._be_oneself()
        item = self._receive()
        while item is not None:
            following = self._receive()
            self._config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            with suppress(BrokenPipeError):
                self._connection.send(self._told)
            self._told = Told([], [])
            item = following
        # They are told, and no reason to end as one who has failed.
        self._session.testsfailed = 0
        return True

    def _receive(self) -> pytest.Item | None:
        try:
            number = self._connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        return None if number is None else self._session.items[number]

    def _be_oneself(self) -> None:
        """Shares nothing with the others that is written to, and leaves what pytest keeps and prints to the parent."""
        plugins = self._config.pluginmanager
        # By this pytest's plugins know one whose reports another process has.
        self._config.workerinput = {}  # type: ignore[attr-defined]
        plugins.unregister(name="terminalreporter")
        # The file to which output goes is one for all.
        capturing = plugins.get_plugin("capturemanager")
        if capturing is not None and capturing.is_globally_capturing():
            capturing.stop_global_capturing()
            capturing.start_global_capturing()
            capturing.suspend_global_capture()
        writer = pytest.TerminalReporter(self._config, sys.__stderr__)._tw
        plugins.register(SimpleNamespace(_tw=writer), "terminalreporter")
        plugins.register(self)
        # Warnings of before are repeated to a plugin that is new.
        self._told.warnings.clear()
        # Each its own names and numbers.
        random.seed()
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._told.reports.append(data)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: tuple[str, int, str] | None
    ) -> None:
        # Its object may be one that cannot be sent.
        told = warnings.WarningMessage(
            str(warning_message.message), UserWarning, warning_message.filename, warning_message.lineno
        )
        self._told.warnings.append({"warning_message": told, "when": when, "nodeid": nodeid, "location": location})
