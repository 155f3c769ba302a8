"""What a client reads in shared memory stays as it is for as long as it is kept."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.limits import RELEASE_BYTES
from clients import aio
from clients.reading.leases import Leases
from tests.clients.conftest import Connect
from tests.clients.publishing.test_shared_memory import PATIENCE_S, is_shared, numbers, shared_files
from tests.clients.serving import ServingThread

ROUNDS = 40
"""Messages, each of which is read at once: more than there are blocks, so each block is written to again."""


@pytest.fixture(params=["inproc", "unix"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServingThread]:
    addresses = {"inproc": f"inproc://{tmp_path.name}", "unix": f"unix://{tmp_path}/broker.sock"}
    with ServingThread(addresses[request.param]) as serving:
        yield serving


@pytest.fixture
def others(bus: clients.Client, connect: Connect) -> Callable[[], None]:
    """Writes to all memory that the publisher may write to."""
    subscription = connect("others").subscribe("a")

    def overwrite(first: int = 1000) -> None:
        for number in range(first, first + ROUNDS):
            bus.publish("a", numbers(number))
            while subscription.next(PATIENCE_S).value[0] != number:
                pass

    return overwrite


def test_what_is_kept_stays_right_when_its_reader_has_closed(
    bus: clients.Client, connect: Connect, others: Callable[[], None]
) -> None:
    reader = connect("reader")
    subscription = reader.subscribe("#")
    bus.publish("a", numbers(1))
    bus.publish("b", {"x": numbers(2)})
    message, structure = subscription.next(PATIENCE_S), subscription.next(PATIENCE_S)
    part = message.value[10:20]
    reader.close()
    others()
    assert is_shared(part)
    assert np.array_equal(part, numbers(11, 10))
    assert np.array_equal(message.value, numbers(1))
    assert np.array_equal(structure.value["x"], numbers(2))


def test_what_is_kept_and_what_waits_stays_right_when_the_connection_was_lost(
    broker: ServingThread, bus: clients.Client, connect: Connect, others: Callable[[], None]
) -> None:
    subscription = connect("reader").subscribe("a")
    bus.publish("a", numbers(1))
    bus.publish("a", numbers(2))
    array = subscription.next(PATIENCE_S).value
    broker.cut_off("reader")
    others()
    assert np.array_equal(subscription.next(PATIENCE_S).value, numbers(2))
    assert np.array_equal(array, numbers(1))
    # It has come back, and shares again.
    while True:
        value = subscription.next(PATIENCE_S).value
        if value[0] == 1000 + ROUNDS - 1:
            break
    assert is_shared(value)
    assert np.array_equal(array, numbers(1))


def test_memory_is_not_used_again_while_a_reader_has_not_seen_that_its_session_is_over(
    broker: ServingThread,
) -> None:
    with (
        clients.connect(broker.url, name="bus") as bus,
        clients.connect(broker.url, name="reader") as reader,
        clients.connect(broker.url, name="other") as other,
        other.subscribe("b") as wanted,
    ):
        bus.declare("#", ring_messages=1)
        subscription = reader.subscribe("a")
        bus.publish("a", numbers(1))
        array = subscription.next(PATIENCE_S).value
        with reader._driver.lock:
            # As a process that is stopped, it takes note of nothing.
            broker.cut_off("reader")
            for number in range(ROUNDS):
                bus.publish("b", numbers(number))
                assert wanted.next(PATIENCE_S).value[0] == number
            assert np.array_equal(array, numbers(1))
        bus.publish("a", numbers(2))
        assert np.array_equal(subscription.next(PATIENCE_S).value, numbers(2))
        assert np.array_equal(array, numbers(1))
        # By now its first connection is closed at both ends.
        broker.call(broker.server._look_for_ends)
        bus.flush(PATIENCE_S)
        assert 1 not in bus._core.arenas._lent
        assert broker.call(lambda: len(broker.server._reading)) == 0


def test_what_a_reader_has_kept_holds_no_shared_memory_after_its_end(broker: ServingThread, connect: Connect) -> None:
    before = shared_files()
    publisher, reader = connect("publisher"), connect("reader")
    subscription = reader.subscribe("a")
    publisher.publish("a", numbers(1))
    array = subscription.next(PATIENCE_S).value
    reader.close()
    publisher.close()
    broker.wait_until_idle()
    broker.call(broker.server.state.router.topics["a"].ring.clear)
    broker.call(broker.server._look_for_ends)
    assert broker.call(shared_files) == before
    assert "memfd:tensorbus" not in Path("/proc/self/maps").read_text()
    assert np.array_equal(array, numbers(1))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    del array
    gc.collect()


def test_an_array_may_go_at_any_moment_also_while_it_is_looked_how_many_have_gone() -> None:
    leases = Leases()

    class Size(int):
        """A length; while it is added to others, another array goes, as on another thread or by garbage collection."""

        def __radd__(self, other: int) -> int:
            leases._over.append((len(leases._over) + 1, 1))
            return other + int(self)

    leases._over.extend([(1, Size(RELEASE_BYTES)), (2, Size(1))])
    assert leases.due()
    assert len(leases._over) == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("connect", ["synchronous"], indirect=True)
def test_what_is_kept_stays_right_when_its_client_is_forgotten_without_being_closed(
    broker: ServingThread, bus: clients.Client, others: Callable[[], None]
) -> None:
    loop = asyncio.new_event_loop()

    async def read() -> np.ndarray:
        client = await aio.connect(broker.url, name="forgotten")
        subscription = await client.subscribe("a", overflow="drop_oldest")
        bus.publish("a", numbers(1))
        return (await subscription.next(PATIENCE_S)).value

    array = loop.run_until_complete(read())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    del loop, read
    gc.collect()
    others()
    assert np.array_equal(array, numbers(1))
    others()
    assert np.array_equal(array, numbers(1))


def test_of_too_many_readers_that_do_not_see_their_end_the_oldest_counts_as_gone(
    broker: ServingThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.server.LINGERING_MAX", 1)
    with (
        clients.connect(broker.url, name="bus") as bus,
        clients.connect(broker.url, name="first") as first,
        clients.connect(broker.url, name="second") as second,
    ):
        bus.declare("#", ring_messages=1)
        subscriptions = [reader.subscribe("a") for reader in (first, second)]
        bus.publish("a", numbers(1))
        arrays = [subscription.next(PATIENCE_S).value for subscription in subscriptions]
        with first._driver.lock, second._driver.lock:
            for name in ("first", "second"):
                broker.cut_off(name)
            assert broker.call(lambda: [link.record.name for link in broker.server._reading.owners]) == ["second"]
            assert broker.call(lambda: len(broker.server._links)) == 1
        del arrays
