"""Publishers, readers and brokers are killed while arrays in shared memory go over a line.

A thousand clients, as a run by hand:

    TENSORBUS_TEST_KILLS=1000 python -m pytest tests/system/test_line_kills.py --timeout 1200
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import clients
from broker.protocol.line import AVAILABLE
from tests.clients.serving import ServingThread
from tests.daemon import Daemon, Process
from tests.system.array_readers import ArrayReader
from tests.system.nursery import TOPIC, shared_array
from tests.thorough import rounds

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")

KILLS = int(os.environ.get("TENSORBUS_TEST_KILLS", rounds(90)))
PATIENCE_S = 150.0 + KILLS
STOP = "stop"


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServingThread]:
    # A topic that has lost its line soon gets the next one soon, too: each killed client is to see one.
    monkeypatch.setattr("broker.state.lines.LINE_AFTER_MESSAGES_MAX", 16)
    with ServingThread(f"unix://{tmp_path}/broker.sock") as serving:
        yield serving


def kill(url: str, role: str, seed: int) -> None:
    """Has a nursery kill clients one after the other."""
    with Process(
        url, role, str(KILLS), str(seed), module="tests.system.nursery", environment={"OPENBLAS_NUM_THREADS": "1"}
    ) as nursery:
        assert nursery.read_line(PATIENCE_S) == f"killed {KILLS}", nursery.errors
        assert nursery.errors == ""


def mappings() -> list[str]:
    gc.collect()
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:tensorbus" in line]


def test_killed_publishers_leave_nothing_torn_and_nothing_behind(broker: ServingThread) -> None:
    with clients.connect(broker.url, name="reader") as bus, clients.connect(broker.url, name="other") as other:
        reader = ArrayReader(bus, 64)
        kill(broker.url, "share-lined", seed=5)
        broker.wait_until_alone(other, 2)
        other.publish(TOPIC, STOP, ack="accepted")
        reader.join(PATIENCE_S)
        assert reader.torn == []
        # Of each publisher all that it had published, in order, from its first array on.
        starts = [index for index, number in enumerate(reader.numbers) if not number]
        parts = [reader.numbers[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
        assert all(part == list(range(len(part))) for part in parts)
        assert len(parts) == KILLS
        assert reader.lined >= KILLS
        other.declare(TOPIC, retain=False)
        other.flush(PATIENCE_S)
        while mappings():
            # The last ones are let go of when the reader's client next speaks to the broker.
            bus.flush(PATIENCE_S)
            other.flush(PATIENCE_S)
        assert broker.call(lambda: broker.server.state.own.lines._leases) == []


def test_killed_readers_leave_nothing_behind_and_their_publisher_goes_on(broker: ServingThread) -> None:
    with clients.connect(broker.url, name="reader") as bus, clients.connect(broker.url, name="publisher") as publisher:
        reader = ArrayReader(bus, 64)
        killer = threading.Thread(target=kill, args=(broker.url, "hold-lined", 9))
        killer.start()
        number = 0
        while killer.is_alive():
            publisher.publish(TOPIC, shared_array(number), timeout_s=PATIENCE_S)
            number += 1
        publisher.publish(TOPIC, STOP, ack="accepted")
        reader.join(PATIENCE_S)
        assert reader.torn == []
        assert reader.numbers == list(range(number))
        assert reader.subscription.dropped == 0
        assert reader.lined >= KILLS
        publisher.declare(TOPIC, retain=False)
        while publisher._core.arenas._lent:
            # All that was lent comes back.
            bus.flush(PATIENCE_S)
            publisher.flush(PATIENCE_S)
            gc.collect()
        assert broker.call(lambda: broker.server.state.own.lines._leases) == []


@pytest.mark.parametrize("moment", range(3))
def test_when_the_broker_is_killed_no_array_is_torn_and_all_begins_anew(tmp_path: Path, moment: int) -> None:
    with Daemon(listen=[f"unix://{tmp_path}/broker.sock"], admin="off") as daemon:
        assert daemon.process is not None
        back = threading.Semaphore(0)
        with (
            clients.connect(daemon.url, name="reader", on_reconnect=lambda event: back.release()) as bus,
            clients.connect(daemon.url, name="writer", on_reconnect=lambda event: back.release()) as publisher,
        ):
            reader, number, lined = ArrayReader(bus, 64), 0, 0
            while lined < 40 + 11 * moment:
                publisher.publish(TOPIC, shared_array(number), timeout_s=PATIENCE_S)
                lined += publisher._core.outgoing.topics[TOPIC].line is not None
                number += 1
            daemon.process.kill()
            daemon.start()
            # Both: a writer that has not noticed yet puts its next array on a line that has lost its reader.
            for _ in range(2):
                assert back.acquire(timeout=PATIENCE_S)
            before, number = number, number + 200
            for each in range(before, number):
                publisher.publish(TOPIC, shared_array(each), timeout_s=PATIENCE_S)
            publisher.publish(TOPIC, STOP, ack="accepted", timeout_s=PATIENCE_S)
            reader.join(PATIENCE_S)
    assert reader.torn == []
    # What was on the line is read, what was on its way to the broker may be lost, and nothing comes twice.
    assert reader.numbers == sorted(set(reader.numbers))
    assert reader.numbers[:lined] == list(range(lined))
    assert reader.numbers[-200:] == list(range(before, number))
