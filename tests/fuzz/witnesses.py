"""Good clients, which have to notice nothing of what bad ones do beside them: nothing lost or changed, no error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

import clients

PATIENCE_S = 60.0
TOPIC = "good/stream"
POLICY = """
[[topics]]
filter = "good/#"
overflow = "block"
ring_messages = 0
acknowledge = false
lane = "default"
max_message_bytes = "1GiB"
batch_bytes = 65536
batch_window_us = 200
"""
"""Of the daemon's file of settings: without permissions, anybody else may declare what holds for a topic."""
ELEMENTS = (3, 300, 30_000)
"""Of the arrays that are published: in a batch, in a frame, and in chunks or in shared memory."""


class Witnesses:
    """Clients that publish, subscribe, ask, answer and reduce, each on a thread of its own, until the context ends.

    Attributes:
        faults: what they have noticed.
        counts: how often each of them has done what it does.
    """

    def __init__(self, url: str) -> None:
        self.faults: list[str] = []
        self.counts: dict[str, int] = {}
        self._url = url
        self._stopping = threading.Event()
        self._clients: list[clients.Client] = []
        self._threads: list[threading.Thread] = []

    def _client(self, name: str) -> clients.Client:
        def reconnected(event: object) -> None:
            self.faults.append(f"{name} was cut off: {event}")

        client = clients.connect(self._url, name=name, on_reconnect=reconnected)
        self._clients.append(client)
        return client

    def _start(self, name: str, function: Callable[[str], None]) -> None:
        self.counts[name] = 0

        def run() -> None:
            try:
                function(name)
            except BaseException as error:
                self.faults.append(f"{name}: {type(error).__name__}: {error}")

        self._threads.append(threading.Thread(target=run, name=name))
        self._threads[-1].start()

    def __enter__(self) -> Self:
        reader = self._client("good-reader").subscribe(TOPIC, queue_messages=64)
        publisher, responder, requester = (self._client(f"good-{part}") for part in ("publisher", "responder", "asker"))
        answering = responder.respond("good/echo", lambda message: message.value)
        ranks = [self._client(f"good-rank-{rank}") for rank in range(2)]
        assert answering is not None
        self._start("published", lambda name: self._publish(name, publisher))
        self._start("received", lambda name: self._receive(name, reader))
        self._start("answered", lambda name: self._ask(name, requester))
        for rank, client in enumerate(ranks):
            self._start(f"reduced-{rank}", lambda name, rank=rank, client=client: self._reduce(name, client, rank))
        return self

    def _publish(self, name: str, bus: clients.Client) -> None:
        number = 0
        while not self._stopping.is_set():
            bus.publish(TOPIC, np.full(ELEMENTS[number % len(ELEMENTS)], number, "int64"), timeout_s=PATIENCE_S)
            number += 1
            self.counts[name] = number
            if number % 64 == 0:
                # Not faster than the reader, and with some time for the others.
                bus.flush(PATIENCE_S)
        bus.publish(TOPIC, "end", timeout_s=PATIENCE_S)
        bus.flush(PATIENCE_S)

    def _receive(self, name: str, reader: clients.Subscription) -> None:
        number = 0
        while not isinstance(value := reader.next(PATIENCE_S).value, str):
            assert value.shape == (ELEMENTS[number % len(ELEMENTS)],), f"message {number} has shape {value.shape}"
            assert (value == number).all(), f"message {number} holds {value[:3]}"
            number += 1
            self.counts[name] = number

    def _ask(self, name: str, bus: clients.Client) -> None:
        while not self._stopping.wait(0.005):
            number = self.counts[name]
            answer = bus.request("good/echo", number, timeout_s=PATIENCE_S).value
            assert answer == number, f"{number} came back as {answer}"
            self.counts[name] = number + 1

    def _reduce(self, name: str, bus: clients.Client, rank: int) -> None:
        with bus.group("good", world_size=2, rank=rank) as group:
            while True:
                number = self.counts[name]
                array = np.array([number, float(self._stopping.wait(0.005))])
                group.all_reduce(array, op="sum", timeout_s=PATIENCE_S)
                assert array[0] == 2 * number, f"operation {number} gave {array[0]}"
                self.counts[name] = number + 1
                if array[1]:
                    # Both see in the same operation that one of them is to stop.
                    return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            if thread.is_alive():
                self.faults.append(f"{thread.name} hangs")
        if self.counts.get("published") != self.counts.get("received"):
            self.faults.append(f"messages are lost: {self.counts}")
        for client in self._clients:
            client.close()
