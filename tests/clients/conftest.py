"""One suite for both kinds of client, over every transport."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

import clients
from broker.collectives import ring
from tests.clients.asynchronous import AsyncLoop
from tests.clients.ranks import close_ranks
from tests.clients.serving import ServingThread
from tests.collectives import link_engine

_names = itertools.count()


NOT_OVER_TLS = {
    "test_channels", "test_collective_kinds", "test_lent_arrays", "test_local_sgd", "test_partial", "test_state_sync",
}  # fmt: skip
"""What clients say to each other there is as in test_groups, which goes over TLS too, or is about one host."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what another test shows already."""
    items[:] = [item for item in items if not (item.path.stem in NOT_OVER_TLS and "tls" in item.name)]


class Connect(Protocol):
    """Makes a client of the kind under test."""

    def __call__(self, name: str, **options: object) -> clients.Client: ...


@pytest.fixture(params=["inproc", "tcp", "tls", "unix"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServingThread]:
    # Both ends have the broker's certificate, which can be a client's as well.
    folder = f"{request.getfixturevalue('certificates')}/broker" if request.param == "tls" else ""
    address = {
        "inproc": f"inproc://broker-{next(_names)}",
        "tcp": "tcp://127.0.0.1:0",
        "tls": f"tls://127.0.0.1:0?certificates={folder}",
        "unix": f"unix://{tmp_path}/broker.sock",
    }[request.param]
    with ServingThread(address) as serving:
        yield serving


@pytest.fixture(autouse=True)
def _ranks_are_closed() -> Iterator[None]:
    yield
    close_ranks()


@pytest.fixture
def tcp_broker() -> Iterator[ServingThread]:
    with ServingThread("tcp://127.0.0.1:0") as serving:
        yield serving


@pytest.fixture(params=["synchronous", "asynchronous"])
def connect(request: pytest.FixtureRequest, broker: ServingThread) -> Iterator[Connect]:
    opened: list[clients.Client] = []
    loop = AsyncLoop() if request.param == "asynchronous" else None
    make: Callable[..., clients.Client] = clients.connect if loop is None else loop.connect

    def connect_client(name: str, **options: object) -> clients.Client:
        client = make(broker.url, name=name, **options)
        opened.append(client)
        return client

    yield connect_client
    for client in opened:
        client.close()
    if loop is not None:
        loop.close()


@pytest.fixture
def bus(connect: Connect) -> clients.Client:
    return connect("first")


@pytest.fixture
def other(connect: Connect) -> clients.Client:
    return connect("second")


@pytest.fixture
def links() -> None:
    """Ranks can be linked."""
    if not ring.AVAILABLE:
        pytest.skip("the engine of links is not compiled")


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-in in place of the engine of links."""
    for name in ("Engine", "Plan", "Task"):
        monkeypatch.setattr(ring, name, getattr(link_engine, name))
