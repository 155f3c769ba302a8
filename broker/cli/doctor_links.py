"""What `tensorbus doctor` says of links between ranks: what the choice of a schedule assumes, and what is so here.

The choice itself goes by what is assumed, which is the same on all ranks (broker/collectives/costs.py); what two of
them measure is not. Where the two are far apart, `schedule=` of a group says better which one it shall be.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Final

import numpy as np

from broker.cli.connect import duration_text
from broker.cli.doctor_system import Finding, State
from broker.collectives import ring
from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.collectives.costs import ETHERNET, LOOPBACK, Wire
from broker.errors import BrokerError
from broker.limits import MIB
from broker.measuring.percentiles import percentile
from clients.connection.views import Way

HOP_BYTES: Final = 8
RATE_BYTES: Final = 8 * MIB
HOPS: Final = 300
RATES: Final = 12
PATIENCE_NS: Final = 5 * 10**9


def link_finding(found: Way, round_trip_s: float) -> Finding:
    """What is assumed of links, and what is so.

    Args:
        found: the way to the broker.
        round_trip_s: to the broker and back, in seconds.
    """
    assumed = f"{_words(ETHERNET)} assumed between hosts, {_words(LOOPBACK)} inside one"
    measured = loopback_wire()
    values = {"assumed_hop_s": ETHERNET.hop_s, "assumed_bytes_per_s": ETHERNET.bytes_per_s}
    if measured is None:
        return Finding("links", State.INFO, f"{assumed}; not measured: the engine is not compiled here", "", values)
    values |= {"loopback_hop_s": measured.hop_s, "loopback_bytes_per_s": measured.bytes_per_s}
    text = f"{assumed}; measured over loopback {_words(measured)}"
    if not found.same_host:
        values["broker_hop_s"] = round_trip_s / 2
        text += f", to the broker's host {duration_text(round_trip_s / 2)}, with all that client and broker do"
    return Finding("links", State.INFO, text, "", values)


def loopback_wire() -> Wire | None:
    """What two ranks of this machine take over TCP, measured with engines on two threads; None if they cannot be."""
    if not ring.AVAILABLE:
        return None
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = socket.create_connection(server.getsockname())
        second = server.accept()[0]
    engines = [ring.Engine([[], [first.detach()]], 0), ring.Engine([[second.detach()], []], 1)]
    times_s: dict[int, list[float]] = {HOP_BYTES: [], RATE_BYTES: []}
    other = threading.Thread(target=_take_part, args=(engines[1], {HOP_BYTES: [], RATE_BYTES: []}))
    other.start()
    try:
        _take_part(engines[0], times_s)
    except BrokerError:
        return None
    finally:
        for engine in engines:
            engine.end()
        other.join()
        for engine in engines:
            engine.close()
    if not times_s[RATE_BYTES]:
        return None
    # A short operation is two rounds of words; of a long one of two ranks each wire carries the array once.
    hop_s = percentile(sorted(times_s[HOP_BYTES]), 50.0) / 2
    return Wire(hop_s, RATE_BYTES / percentile(sorted(times_s[RATE_BYTES]), 50.0))


def _take_part(engine: ring.Engine, times_s: dict[int, list[float]]) -> None:
    for size_bytes, count in ((HOP_BYTES, HOPS), (RATE_BYTES, RATES)):
        array = np.zeros(size_bytes // 4, np.float32)
        plan = ring.Plan(
            CollectiveKind.ALL_REDUCE, b"%d" % size_bytes, 2,
            op=ReduceOp.SUM, dtype="float32", array_bytes=size_bytes, schedule="ring",
        )  # fmt: skip
        for _ in range(count):
            before_s = time.perf_counter()
            if engine.run(ring.Task(plan, array, array, PATIENCE_NS)) != ring.Outcome.COMMITTED:
                return
            times_s[size_bytes].append(time.perf_counter() - before_s)


def _words(wire: Wire) -> str:
    return f"{duration_text(wire.hop_s)} a hop and {wire.bytes_per_s / 1e9:.2f} GB/s"
