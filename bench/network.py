"""Hosts that are not there: network namespaces of this machine, each with an address of its own, over a bridge.

    host 0   host 1   host 2            each: lo, and eth0 with 10.77.0.<n + 1>
      |        |        |               both ends of a cable send no faster than its rate (tc-tbf(8))
    --+--------+--------+--   switch    a namespace with a bridge

They need root and `ip`. They are removed at the end, and with them their cables; also when a signal ends the process.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import threading
from types import FrameType, TracebackType
from typing import Final, Self

_COMMAND_S: Final = 20.0
_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals that would end a process where it stands."""


class Unavailable(Exception):
    """There can be no such network here; the text says why."""


def run(*command: str) -> str:
    """Runs a command; returns what it has printed.

    Raises:
        Unavailable: it has failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _end(number: int, frame: FrameType | None) -> None:
    # `timeout` sends it twice, to the process and to its group; the second one would come in the middle of the end.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


class Network:
    """So many hosts."""

    def __init__(self, hosts: int, rate: str = "") -> None:
        """Args:
        hosts: how many.
        rate: of each cable in each direction, in the words of tc, such as `1gbit`; empty sets none.
        """
        self.hosts = hosts
        self.rate = rate
        # Not the process's number: containers share namespaces' names and not those numbers.
        self._name = f"tensorbus-{secrets.token_hex(4)}"
        self._made: list[str] = []
        self._heeded: list[signal.Signals] = []

    def address(self, host: int) -> str:
        """Of a host."""
        return f"10.77.0.{host + 1}"

    def namespace(self, host: int) -> str:
        """In which a host's processes run."""
        return f"{self._name}-{host}"

    def command(self, host: int, *command: str) -> list[str]:
        """A command, to be run on a host."""
        return ["ip", "netns", "exec", self.namespace(host), *command]

    def _add(self, namespace: str) -> None:
        # First, as a signal may come when it is there and nobody has said so.
        self._made.append(namespace)
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")

    def __enter__(self) -> Self:
        if os.geteuid() or not shutil.which("ip") or not shutil.which("tc"):
            raise Unavailable("network namespaces need root, ip and tc (iproute2)")
        self._heed()
        try:
            self._lay()
        except BaseException:
            self._remove()
            raise
        return self

    def _lay(self) -> None:
        switch = f"{self._name}-switch"
        self._add(switch)
        run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "bridge", "up")
        for host in range(self.hosts):
            name, port = self.namespace(host), f"port{host}"
            self._add(name)
            run("ip", "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
            run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            run("ip", "-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            for namespace, device in ((name, "eth0"), (switch, port)) if self.rate else ():
                limit = ("rate", self.rate, "burst", "1mb", "latency", "20ms")
                run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *limit)

    def _heed(self) -> None:
        """From here on these signals end the process as Ctrl-C does, and what is open is closed."""
        if threading.current_thread() is threading.main_thread():
            self._heeded = [each for each in _ENDS if signal.getsignal(each) == signal.SIG_DFL]
        for each in self._heeded:
            signal.signal(each, _end)

    def _remove(self) -> None:
        for each in self._heeded:
            signal.signal(each, signal.SIG_IGN)
        while self._made:
            command = ["ip", "netns", "del", self._made[-1]]
            # In a session of its own, where no signal to this one's group reaches it.
            subprocess.run(command, timeout=_COMMAND_S, check=False, capture_output=True, start_new_session=True)
            self._made.pop()
        while self._heeded:
            signal.signal(self._heeded.pop(), signal.SIG_DFL)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()
