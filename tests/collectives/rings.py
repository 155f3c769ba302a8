"""Ranks whose engines are connected by sockets, without a broker: threads, and processes."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from broker.collectives import ring
from tests.collectives.processes import PATIENCE_S, Process

SECOND_NS = 10**9

T = TypeVar("T")
Pair = tuple[socket.socket, socket.socket]


def unix_pair() -> Pair:
    """Two connected sockets."""
    return socket.socketpair()


def tcp_pair() -> Pair:
    """Two sockets connected over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = socket.create_connection(server.getsockname())
        second, _ = server.accept()
    return first, second


def lanes_between(first: int, second: int, positions: int, lanes: int) -> int:
    """How many lanes a link has: several to the neighbours on the ring."""
    return lanes if (second - first) % positions in (1, positions - 1) else 1


def mesh(positions: int, lanes: int = 1, make: Callable[[], Pair] = unix_pair) -> list[list[list[int]]]:
    """For each position the descriptors of its links, as an engine wants them."""
    links: list[list[list[int]]] = [[[] for _ in range(positions)] for _ in range(positions)]
    for second in range(positions):
        for first in range(second):
            for _ in range(lanes_between(first, second, positions, lanes)):
                pair = make()
                links[first][second].append(pair[0].detach())
                links[second][first].append(pair[1].detach())
    return links


def close_all(links: list[list[list[int]]]) -> None:
    """Closes the descriptors of links that no engine has taken."""
    for of in links:
        for lanes in of:
            for file in lanes:
                os.close(file)


def engines_of(
    positions: int, lanes: int = 1, make: Callable[[], Pair] = unix_pair, hosts: str = ""
) -> list[ring.Engine]:
    """Connected engines; `hosts` has a letter for each position's host."""
    links = mesh(positions, lanes, make)
    return [ring.Engine(links[position], position, hosts=hosts) for position in range(positions)]


def on_threads(
    positions: int,
    work: Callable[[ring.Engine, int], T],
    lanes: int = 1,
    make: Callable[[], Pair] = unix_pair,
    hosts: str = "",
) -> list[T]:
    """What `work` has returned on each position."""
    engines = engines_of(positions, lanes, make, hosts)
    try:
        with ThreadPoolExecutor(positions) as pool:
            futures = [pool.submit(work, engine, position) for position, engine in enumerate(engines)]
            return [future.result(PATIENCE_S) for future in futures]
    finally:
        for engine in engines:
            engine.close()


def new_processes(positions: int, lanes: int = 1, make: Callable[[], Pair] = tcp_pair) -> list[Process]:
    """Connected ranks in processes of their own."""
    links = mesh(positions, lanes, make)
    processes = [
        Process(["ring", json.dumps(of), str(position)], [file for each in of for file in each])
        for position, of in enumerate(links)
    ]
    close_all(links)
    return processes
