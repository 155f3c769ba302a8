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
    "test_channels": "a send is an operation of two ranks: the frames are those of test_groups",
    "test_collective_kinds": "kinds differ in claims and what the broker reduces: the frames are those of test_groups",
    "test_lent_arrays": "it is about shared memory, which no session over TLS has, but for one test that goes over TCP",
    "test_local_sgd": "a loop over operations of test_groups",
    "test_partial": "who is late is the broker's affair: the frames are those of test_groups",
    "test_state_sync": "a loop over operations of test_groups",
}
"""Modules whose tests go over each transport but TLS, and why. A session does not know over what it goes: the frames of
groups are sent over TLS by test_groups, and bytes of all lengths by tests/transport/test_conformance.py."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what another test shows already; pytest tells how many."""
    folder = Path(__file__).parent
    assert all((folder / f"{name}.py").exists() for name in NOT_OVER_TLS)
    shown = [item for item in items if item.path.stem in NOT_OVER_TLS and _transport(item) == "tls"]
    if shown:
        config.hook.pytest_deselected(items=shown)
        items[:] = [item for item in items if item not in set(shown)]


def _transport(item: pytest.Item) -> object:
    """Over which transport a test goes, if it is one of those that go over each."""
    call = getattr(item, "callspec", None)
    return None if call is None else call.params.get("broker")


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
