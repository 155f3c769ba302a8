"""Faults without end for collective groups: ranks and the broker are killed, stopped, cut off and slowed down.

    python -m tests.system.collective_faults --count 1000 --schedules ring,halving,hierarchical --seed 1

Of schedules, `links` is auto between ranks that share no memory; the others are a group's.

A broker and two to four ranks (faulty_rank.py) are real processes, and the ranks carry out one collective after the
other. After a random moment something happens to one of them, and again as soon as the group is whole once more, or
before. What must hold, whatever happens:

    no hang       every survivor says within PATIENCE_S that its operation has failed, and the group is whole again
    right         a result is the right one for the ranks of its generation; the ranks compare it themselves
    all or none   an operation is done on every survivor or on none, and one that failed has changed no array
    named         a rank that was killed, cut off or stopped for long is named to every survivor; when a link between
                  two ranks breaks, all are told and nobody is lost
    no leaks      broker and survivors have the descriptors and the mapped memory that they had in the beginning

It prints a table (fault_table.py), and ends with status 1 when something did not hold. Its times are of interest on a
quiet machine alone.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from clients.collectives.ports import name_nearby
from tests.daemon import Daemon, Process
from tests.loopback import own_host
from tests.system.fault_table import Broken, Table

PATIENCE_S = 40.0
HEARTBEATS = ("--heartbeat-interval-s", "0.3", "--heartbeat-timeout-s", "3.0")
"""A survivor that gets no processor for two seconds is none that is lost."""
MOMENT_MAX_S = 0.03
"""How long the ranks work between two faults: some tens of operations."""
BRIEF_S, LONG_S = 0.2, 4.5
"""How long a rank stands still: much less than the heartbeat time-out, and more."""
PIDFD_GETFD = 438
"""The number of pidfd_getfd(2) on every architecture."""
KINDS = {
    "kill": 50,
    "cut": 16,
    "kill the newcomer": 10,
    "pause": 8,
    "slow": 8,
    "stop": 3,
    "stop and kill": 3,
    "broker": 2,
}
"""What happens, and how often."""
LINK_KINDS = {**KINDS, "cut a link": 30}
"""The same of ranks that are linked with one another."""
SCHEDULES = ("shm", "star", "links", "ring", "halving", "hierarchical")
LIBC = ctypes.CDLL(None, use_errno=True)


class Rank:
    """A rank's process, and what it has said that nobody has looked at."""

    def __init__(self, number: int, start: Callable[[], Process]) -> None:
        self.number = number
        self._start = start
        self.process = start()
        self.said: list[list[str]] = []
        self.held: tuple[int, int] | None = None

    def again(self) -> None:
        """A new process takes its place."""
        self.process.close()
        self.process, self.held = self._start(), None
        self.said.clear()

    def until(self, word: str, after_ns: int = 0) -> list[str]:
        """Reads on to a line that begins with a word, and ends with a time later than another one if there is one.

        Raises:
            Broken: it says that something is wrong, or nothing for too long, or has ended.
        """
        while True:
            try:
                line = self.process.read_line(PATIENCE_S).split(" ")
            except (TimeoutError, EOFError) as error:
                raise Broken(
                    "hang", f"rank {self.number} does not come to {word!r}: {error}; it said {self.said[-8:]}"
                ) from error
            self.said.append(line)
            if line[0] == "wrong":
                raise Broken("wrong", f"rank {self.number}: {' '.join(line)}; before that it said {self.said[-8:]}")
            if line[0] == word and (not after_ns or int(line[-1]) > after_ns):
                return line


def held(pid: int) -> tuple[int, int]:
    """How many descriptors a process has, and how many mappings of shared memory."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return len(os.listdir(f"/proc/{pid}/fd")), maps.count("memfd:")


def sockets(pid: int) -> Iterator[socket.socket]:
    """Copies of the connected sockets of another process."""
    process = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            copy = LIBC.syscall(PIDFD_GETFD, process, int(name), 0)
            if copy < 0:
                continue
            if "socket:" not in os.readlink(f"/proc/self/fd/{copy}"):
                os.close(copy)
                continue
            with socket.socket(fileno=copy) as found:
                yield found
    finally:
        os.close(process)


def cut(pid: int) -> bool:
    """Cuts a process off from its broker: its connections end, and it is told nothing else.

    Returns:
        Whether that was possible: some containers do not let a process have the sockets of another one.
    """
    done = False
    for found in sockets(pid):
        with suppress(OSError):
            # A pair of its own has no address.
            if found.getpeername():
                found.shutdown(socket.SHUT_RDWR)
                done = True
    return done


def is_link(found: socket.socket, broker_port: int) -> bool:
    """Whether a socket is a connection to another rank, over a network or within the host.

    Raises:
        OSError: it is no connection.
    """
    peer = found.getpeername()
    if found.family == socket.AF_INET:
        return bool(peer[1] != broker_port)
    # Who has dialled has no name of its own.
    names = [name for name in (peer, found.getsockname()) if isinstance(name, bytes)]
    return any(name.startswith(name_nearby("")) for name in names)


def cut_link(pid: int, broker_port: int) -> bool:
    """Cuts a connection between a process and another rank, of those that it has.

    Returns:
        Whether there was one, and that was possible.
    """
    for found in sockets(pid):
        with suppress(OSError):
            if is_link(found, broker_port):
                found.shutdown(socket.SHUT_RDWR)
                return True
    return False


def told_ns(lines: Sequence[Sequence[str]], fault_ns: int) -> int:
    """How long it took until a survivor was told who is lost: from the fault, or from its call if it made that later.

    Args:
        lines: what it has said of failures since the fault, of which the last one names who is lost.
        fault_ns: when that was.
    """
    # What it works before its call and after the error is its own affair.
    return int(lines[-1][-1]) - max(fault_ns, int(lines[0][-2]))


class Arena:
    """A broker and its ranks; leaving the context ends them all.

    Attributes:
        found: the faults that were made, and what came of them.
    """

    def __init__(self, schedule: str, seed: int, directory: Path) -> None:
        self._schedule = schedule
        self._seed = seed
        self._random = random.Random(seed)
        self._directory = directory
        self._progress = directory / "progress"
        self._progress.write_bytes(bytes(8 * 64))
        listen = [f"unix://{directory}/broker.sock"] if schedule == "shm" else [f"tcp://{own_host()}:0"]
        self.daemon = Daemon(*HEARTBEATS, listen=listen, admin="off")
        self.ranks: list[Rank] = []
        self.found = Table()
        self._held: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(self.daemon)
        world_size = self._random.randint(2, 4)
        for number in range(world_size):
            rank = Rank(number, self._starter(number, world_size))
            self.ranks.append(rank)
            self._stack.callback(lambda rank=rank: rank.process.close())
        self._whole(0)
        self._weigh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _starter(self, number: int, world_size: int) -> Callable[[], Process]:
        def start() -> Process:
            words = self.daemon.url, str(number), str(world_size), self._schedule, str(self._seed), str(self._progress)
            return Process(*words, module="tests.system.faulty_rank", environment={"OPENBLAS_NUM_THREADS": "1"})

        return start

    def strike(self) -> None:
        """Waits for a random moment, does something to somebody, and sees to it that all is well again."""
        kinds = KINDS if self._schedule in ("shm", "star") else LINK_KINDS
        kind = self._random.choices(list(kinds), list(kinds.values()))[0]
        try:
            self._strike(kind)
        except Broken as error:
            error.kind = kind
            raise

    def _strike(self, kind: str) -> None:
        victim = self._random.choice(self.ranks)
        time.sleep(self._random.uniform(0.0, MOMENT_MAX_S))
        for rank in self.ranks:
            rank.said.clear()
        began_ns = time.monotonic_ns()
        survivors = [rank for rank in self.ranks if rank is not victim]
        kind = self._do(kind, victim)
        if kind in ("pause", "slow"):
            self._moves(self.ranks)
        elif kind not in ("broker", "cut a link"):
            self._told(kind, survivors, victim.number, began_ns)
        if kind not in ("pause", "slow"):
            self._whole(began_ns, kind)
            self._compare(self.ranks if kind == "cut a link" else survivors)
        self._tidy(kind)
        self.found.done[kind] += 1

    def _do(self, kind: str, victim: Rank) -> str:
        """Returns what was done."""
        process = victim.process
        if kind == "cut" and cut(process.pid):
            return kind
        if kind == "cut a link" and cut_link(process.pid, int(self.daemon.url.rpartition(":")[2])):
            return kind
        if kind in ("cut", "cut a link", "kill", "kill the newcomer"):
            process.kill()
            victim.again()
            if kind == "kill the newcomer":
                time.sleep(self._random.uniform(0.0, 3 * MOMENT_MAX_S))
                victim.process.kill()
                victim.again()
        elif kind == "broker":
            self.daemon.kill()
            self.daemon.start()
        elif kind == "slow":
            for _ in range(10):
                process.signal(signal.SIGSTOP)
                time.sleep(0.01)
                process.signal(signal.SIGCONT)
                time.sleep(0.002)
        else:
            process.signal(signal.SIGSTOP)
            time.sleep(BRIEF_S if kind == "pause" else LONG_S)
            if kind == "stop and kill":
                process.kill()
                victim.again()
            else:
                process.signal(signal.SIGCONT)
        return "kill" if kind in ("cut", "cut a link") else kind

    def _told(self, kind: str, survivors: Iterable[Rank], lost: int, began_ns: int) -> None:
        """Every survivor is told who is lost."""
        times_ns = []
        for rank in survivors:
            lines = [rank.until("over", began_ns)]
            while str(lost) not in lines[-1][4].split(","):
                lines.append(rank.until("over", began_ns))
            times_ns.append(told_ns(lines, began_ns))
        self.found.told_ms.setdefault(kind, []).append(max(times_ns) / 1e6)

    def _whole(self, began_ns: int, kind: str = "") -> None:
        """Every rank has carried an operation out with all others."""
        times_ns = [int(rank.until("whole", began_ns)[-1]) for rank in self.ranks]
        if kind:
            self.found.whole_ms.setdefault(kind, []).append((max(times_ns) - began_ns) / 1e6)
            started_ns = [int(line[-1]) for rank in self.ranks for line in rank.said if line[0] == "started"]
            if started_ns:
                self.found.since_ms.setdefault(kind, []).append((max(times_ns) - max(started_ns)) / 1e6)

    def _moves(self, ranks: Iterable[Rank]) -> None:
        """Every rank finishes operations."""
        for rank in ranks:
            before, end_s = self._operations(rank), time.monotonic() + PATIENCE_S
            while self._operations(rank) == before:
                if time.monotonic() > end_s:
                    raise Broken("hang", f"rank {rank.number} does not go on; it said {rank.said[-8:]}")
                time.sleep(0.001)

    def _operations(self, rank: Rank) -> int:
        return memoryview(self._progress.read_bytes()).cast("Q")[rank.number]

    def _compare(self, survivors: Iterable[Rank]) -> None:
        """Of each generation, all survivors have done the same operations."""
        ends: dict[str, set[str]] = {}
        for line in (line for rank in survivors for line in rank.said if line[0] == "over"):
            ends.setdefault(line[1], set()).add(line[2])
        for generation, done in ends.items():
            if len(done) > 1:
                raise Broken("wrong", f"of generation {generation} survivors have done {sorted(done)} operations")

    def _tidy(self, kind: str) -> None:
        """Nobody holds more than in the beginning."""
        if kind == "broker":
            self._weigh()
            return
        assert self.daemon.process is not None
        for rank in self.ranks:
            rank.held = rank.held or held(rank.process.pid)
        for who, pid, due in [("the broker", self.daemon.process.pid, self._held)] + [
            (f"rank {rank.number}", rank.process.pid, rank.held) for rank in self.ranks
        ]:
            assert due is not None
            end_s = time.monotonic() + PATIENCE_S
            while any(found > most for found, most in zip(held(pid), due, strict=True)):
                if time.monotonic() > end_s:
                    raise Broken("leak", f"{who} holds {held(pid)} descriptors and mappings, in the beginning {due}")
                time.sleep(0.01)

    def _weigh(self) -> None:
        assert self.daemon.process is not None
        self._held = held(self.daemon.process.pid)
        for rank in self.ranks:
            rank.held = held(rank.process.pid)


def run(schedule: str, seed: int, count: int, found: Table) -> None:
    """So many faults, on one broker and its ranks; what was found is added, also when something did not hold.

    Raises:
        Broken: something did not hold.
    """
    with tempfile.TemporaryDirectory(prefix="faults-") as directory, Arena(schedule, seed, Path(directory)) as arena:
        try:
            for _ in range(count):
                arena.strike()
        except Broken as error:
            arena.found.problems[error.kind, error.problem] += 1
            told = f"{schedule}, seed {seed}, after {dict(arena.found.done)}: {error}"
            words = f"{told}\nbroker:\n{arena.daemon.errors[-2000:]}"
            raise Broken(error.problem, words, error.kind) from error
        finally:
            found.add(arena.found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how many faults, of all schedules together")
    parser.add_argument("--schedules", default="ring,halving,hierarchical,links", help="they take turns")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=25, help="faults until broker and ranks are made anew")
    parser.add_argument("--for-s", type=float, default=float("inf"), help="begin nothing more after so many seconds")
    wishes = parser.parse_args()
    names, end_s = wishes.schedules.split(","), time.monotonic() + wishes.for_s
    unknown = [name for name in names if name not in SCHEDULES]
    if unknown:
        parser.error(f"no schedule is called {unknown[0]!r}; there are {', '.join(SCHEDULES)}")
    tables = {name: Table() for name in names}
    for turn in range(-(-wishes.count // wishes.each)):
        if time.monotonic() > end_s:
            break
        name = names[turn % len(names)]
        try:
            run(name, wishes.seed + turn, min(wishes.each, wishes.count - turn * wishes.each), tables[name])
        except Broken as error:
            print(f"BROKEN ({error.problem}, {error.kind}) {error}", flush=True)
        done = sum(table.done.total() for table in tables.values())
        print(f"{name}, seed {wishes.seed + turn}: {done} faults by now", flush=True)
    whole = Table()
    for name, table in tables.items():
        whole.add(table)
        print(f"\n{name}", *table.lines(), sep="\n")
    print("\nall schedules", *whole.lines(), sep="\n")
    sys.exit(bool(whole.problems))


if __name__ == "__main__":
    main()
