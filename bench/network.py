"""Hosts that are not there: network namespaces of this machine, each with an address of its own, over a bridge.

    host 0   host 1   host 2            each: lo, and eth0 with 10.77.0.<n + 1>
      |        |        |               both ends of a cable send no faster than its rate (tc-tbf(8))
    --+--------+--------+--   switch    a namespace with a bridge

They need root and `ip`. They are removed at the end, and with them their cables.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from types import TracebackType
from typing import Final, Self

_COMMAND_S: Final = 20.0


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
        run("ip", "netns", "add", namespace)
        self._made.append(namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")

    def __enter__(self) -> Self:
        if os.geteuid() or not shutil.which("ip") or not shutil.which("tc"):
            raise Unavailable("network namespaces need root, ip and tc (iproute2)")
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

    def _remove(self) -> None:
        while self._made:
            subprocess.run(["ip", "netns", "del", self._made.pop()], timeout=_COMMAND_S, check=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()
