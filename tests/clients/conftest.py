"""One suite for both kinds of client, over every transport."""

from __future__ import annotations

import itertools
import signal
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

import clients
from broker.collectives import ring
from tests.clients.asynchronous import AsyncLoop
from tests.clients.covering import covering
from tests.clients.ranks import close_ranks
from tests.clients.serving import PATIENCE_S, ServingThread
from tests.collectives import link_engine
from tests.thorough import THOROUGH

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


FULL = "unix"
"""The transport over which all combinations of the other parameters go: it has shared memory, boards, lines, links."""
EACH_KIND_OVER_EACH = {
    "test_groups",
    "test_lifetime",
    "test_publishing",
    "test_requests",
    "test_resume",
}
"""Modules whose tests go over each transport with both kinds of client: all that a kind does with a connection."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what another test shows already; pytest tells how many.

    A session does not know over what it goes. So each transport gets each value of each parameter, every schedule among
    them, and only FULL gets all their combinations, unless this is a thorough run. Which kind of client goes over which
    of the others varies from test to test. There each kind gets each value, and one of them each combination. In
    EACH_KIND_OVER_EACH both kinds do all of it.
    """
    folder = Path(__file__).parent
    assert {*NOT_OVER_TLS, *EACH_KIND_OVER_EACH} <= {path.stem for path in folder.rglob("test_*.py")}
    prefix = f"{folder.relative_to(config.rootpath).as_posix()}/"
    ours = [item for item in items if item.nodeid.startswith(prefix)]
    left_out = {item for item in ours if _is_shown_or_impossible(item)}
    if not THOROUGH:
        left_out |= _more_than_each_value([item for item in ours if item not in left_out])
        left_out |= _once_more_with_the_other_kind([item for item in ours if item not in left_out])
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _is_shown_or_impossible(item: pytest.Item) -> bool:
    """Whether NOT_OVER_TLS says so, or it would link clients of a broker in their process, on no network."""
    parameters = _parameters(item)
    transport = parameters.get("broker")
    if transport == "tls":
        return item.path.stem in NOT_OVER_TLS
    return transport == "inproc" and parameters.get("schedule") in ("ring", "halving")


def _more_than_each_value(items: list[pytest.Item]) -> set[pytest.Item]:
    """What, of tests that go over FULL and other transports, is not needed for each value to go over each of them."""
    tests: dict[tuple[Path, str], dict[object, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if transport := _parameters(item).get("broker"):
            tests[item.path, getattr(item, "originalname", item.name)][transport].append(item)
    more: set[pytest.Item] = set()
    for (_, name), by_transport in tests.items():
        full = by_transport.pop(FULL, None)
        for number, same in enumerate(by_transport.values() if full else ()):
            # Each begins elsewhere, so that together they have more of the combinations.
            begin = (zlib.crc32(name.encode()) + number * len(same) // (len(by_transport) + 1)) % len(same)
            turned = same[begin:] + same[:begin]
            needed = covering([_values(item) for item in turned])
            more |= set(turned) - {turned[place] for place in needed}
    return more


def _once_more_with_the_other_kind(items: list[pytest.Item]) -> set[pytest.Item]:
    """What is not needed for one kind of client to have each combination, and for both to have each value."""
    tests: dict[tuple[Path, str], dict[object, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        parameters = _parameters(item)
        both_kinds = "connect" in parameters and item.path.stem not in EACH_KIND_OVER_EACH
        if both_kinds and parameters.get("broker", FULL) == FULL:
            name = getattr(item, "originalname", item.name)
            tests[item.path, name][tuple(_values(item).items())].append(item)
    more: set[pytest.Item] = set()
    for by_values in tests.values():
        # Of equals the first is taken: the kinds take turns.
        same = [item for number, both in enumerate(by_values.values()) for item in both[:: -1 if number % 2 else 1]]
        needed = covering([_values_with_kind(item) for item in same])
        more |= set(same) - {same[place] for place in needed}
    return more


def _values_with_kind(item: pytest.Item) -> dict[str, object]:
    kind, values = _parameters(item)["connect"], _values(item)
    return {name: (kind, value) for name, value in values.items()} | {"kind": kind, "all": tuple(values.items())}


def _parameters(item: pytest.Item) -> Mapping[str, object]:
    call = getattr(item, "callspec", None)
    return {} if call is None else call.params


def _values(item: pytest.Item) -> dict[str, object]:
    """Which objects a test's parameters are that each transport is to get; of those given together, the combination."""
    out = {"broker"} if item.path.stem in EACH_KIND_OVER_EACH else {"broker", "connect"}
    values: dict[str, object] = {name: id(value) for name, value in _parameters(item).items() if name not in out}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
        values[str(names)] = tuple(values.get(name.strip()) for name in names)
    return values


class Connect(Protocol):
    """Makes a client of the kind under test."""

    def __call__(self, name: str, **options: object) -> clients.Client: ...


@pytest.fixture(params=["inproc", "tcp", "tls", "unix"])
def broker(request: pytest.FixtureRequest) -> Iterator[ServingThread]:
    with ServingThread(_address_of(request.param, request.getfixturevalue), hello_timeout_s=PATIENCE_S) as serving:
        yield serving


def _address_of(transport: str, fixture: Callable[[str], object]) -> str:
    """Where a broker listens; a folder is made for those that need one, as to make a thousand takes seconds."""
    if transport == "tls":
        # Both ends have the broker's certificate, which can be a client's as well.
        return f"tls://127.0.0.1:0?certificates={fixture('certificates')}/broker"
    if transport == "unix":
        return f"unix://{fixture('tmp_path')}/broker.sock"
    return "tcp://127.0.0.1:0" if transport == "tcp" else f"inproc://broker-{next(_names)}"


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
        client = make(broker.url, name=name, **{"connect_timeout_s": PATIENCE_S, **options})
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


class Interrupted(BaseException):
    """What a signal's handler raises, as that of Ctrl-C does."""


@pytest.fixture
def interrupting() -> Iterator[None]:
    """SIGUSR1 raises Interrupted on the main thread."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
