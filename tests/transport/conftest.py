"""The transports under test, and connected pairs of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from broker.transport import Connection, Listener, embedding, listen
from tests.loopback import own_host
from tests.ucxx import need_ucxx

from .driving import PATIENCE_S, accept, connect, open_both

SCHEMES = ("tcp", "tls", "unix", "inproc", "zmq+tcp", "zmq+ipc", "ucx")


@dataclass(frozen=True)
class TransportPair:
    """Two ends of one connection, and the listener between them."""

    listener: Listener
    dialled: Connection
    accepted: Connection


@pytest.fixture(autouse=True)
def no_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the broker has set one; it is set again afterwards."""
    monkeypatch.setattr(embedding, "_factory", None)


@pytest.fixture(params=SCHEMES)
def listen_address(request: pytest.FixtureRequest) -> str:
    """An address of each transport at which a test may listen; a folder is made for those that need one."""
    scheme = str(request.param)
    if scheme == "tls":
        return f"tls://127.0.0.1:0?certificates={request.getfixturevalue('certificates')}/broker"
    if scheme in ("unix", "zmq+ipc"):
        return f"{scheme}://{request.getfixturevalue('tmp_path')}/bus.sock"
    if scheme == "ucx":
        need_ucxx()
        return "ucx://127.0.0.1:0"
    # At an address where nobody else listens when the test does no more. (Certificates name 127.0.0.1.)
    return "inproc://conformance" if scheme == "inproc" else f"{scheme}://{own_host()}:0"


@pytest.fixture
def listener(listen_address: str) -> Iterator[Listener]:
    with listen(listen_address) as listener:
        yield listener


@pytest.fixture
def transport_pair(listener: Listener) -> Iterator[TransportPair]:
    with ExitStack() as ends:
        dialled = ends.enter_context(connect(listener.address, PATIENCE_S))
        accepted = ends.enter_context(accept(listener))
        open_both(dialled, accepted)
        yield TransportPair(listener, dialled, accepted)
