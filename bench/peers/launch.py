"""Starts a peer's server so that it says when it listens: `python -m bench.peers.launch ADDRESS COMMAND...`.

This process becomes the server, so the server has the process id, the time limit and the pipes that its parent knows. A
child stays behind, tries to connect, and prints `listening on ADDRESS` once that works.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Final

SYSTEM_FOLDERS: Final = f"{os.defpath}:/usr/sbin:/usr/local/sbin"
"""Where servers are installed, besides the folders of PATH."""
POLL_S: Final = 0.01


def program(name: str) -> str | None:
    """The path of a program, if it is installed."""
    return shutil.which(name) or shutil.which(name, path=SYSTEM_FOLDERS)


def missing(programs: dict[str, str], modules: dict[str, str]) -> str:
    """How to install what is not installed; empty when everything is.

    Args:
        programs: the Debian package of each program.
        modules: the Python distribution of each module.
    """
    packages = [package for name, package in programs.items() if program(name) is None]
    distributions = [package for name, package in modules.items() if importlib.util.find_spec(name) is None]
    commands = []
    if packages:
        commands.append(f"apt-get install {' '.join(packages)}")
    if distributions:
        commands.append(f"pip install {' '.join(distributions)}")
    return " and ".join(commands)


def versions(servers: dict[str, str], distributions: Sequence[str]) -> dict[str, str]:
    """The versions of programs and Python distributions.

    Args:
        servers: for each program, the option that makes it print its version.
        distributions: their names.
    """
    found = {name: metadata.version(name) for name in distributions}
    for name, option in servers.items():
        said = subprocess.run([program(name) or name, option], capture_output=True, text=True, timeout=10).stdout
        words = said.replace("v=", "").split()
        found[name] = next((word.lstrip("v") for word in words if word.lstrip("v")[:1].isdigit()), "unknown")
    return found


def free_address(address: str) -> str:
    """The address with a port that is free now in place of port 0, for servers that cannot choose one themselves."""
    if not address.endswith(":0"):
        return address
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"tcp://127.0.0.1:{sock.getsockname()[1]}"


def host_and_port(address: str) -> tuple[str, int]:
    """Of a tcp address."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def accepts(address: str) -> bool:
    """Whether somebody listens at an address."""
    unix = address.startswith("unix://")
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as sock:
        return not sock.connect_ex(address.removeprefix("unix://") if unix else host_and_port(address))


def announce(address: str, server: int) -> None:
    """Waits until a server accepts connections, and says so; ends without a word when the server does."""
    while os.getppid() == server:
        if accepts(address):
            print(f"listening on {address}", flush=True)
            return
        time.sleep(POLL_S)


def become(address: str, command: Sequence[str]) -> None:
    """Becomes the server."""
    server = os.getpid()
    if not os.fork():
        announce(address, server)
        os._exit(0)
    # What it says on its standard output is for people.
    os.dup2(2, 1)
    os.execv(command[0], command)


if __name__ == "__main__":
    become(sys.argv[1], sys.argv[2:])
