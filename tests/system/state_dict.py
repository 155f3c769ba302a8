"""A process that publishes a state dict of gigabytes, or reads one as it arrives. Neither needs memory for it.

    python -m tests.system.state_dict publish URL TENSORS TIMEOUT_S
    python -m tests.system.state_dict read URL TENSORS OVERFLOW

The tensors are views of one array, each at another place of it, so that no two are alike. The reader keeps nothing: it
compares every chunk with what it must be, and lets go of it.
"""

from __future__ import annotations

import resource
import select
import sys

import numpy as np

import clients
from broker.buffers import Buffer, Pieces
from broker.limits import FRAME_PAYLOAD_BYTES_MAX, MIB
from broker.protocol.bodies import Failure, Hello, Subscribe, decode_body, encode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.receiver import Received
from broker.protocol.values import encode_value
from broker.transport.addresses import parse_list
from clients.connection.link import Link, dial, read

TOPIC = "weights/policy"
TENSOR_BYTES = 64 * MIB
STEP = 1024
SUBSCRIPTION = 1
QUEUE_BYTES = 8 * MIB
PATIENCE_S = 400.0


def state_dict(tensors: int) -> dict[str, np.ndarray]:
    """A state dict of so many tensors of 64 MiB, which all lie in the same 64 MiB and a little more."""
    elements = TENSOR_BYTES // 4
    memory = np.arange(elements + tensors * STEP, dtype=np.uint32) * np.uint32(2_654_435_761)
    return {
        f"layer.{number}.weight": memory[number * STEP :][:elements].reshape(4096, -1).view(np.float32)
        for number in range(tensors)
    }


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def publish(url: str, tensors: int, timeout_s: float) -> None:
    """Publishes one state dict and says how much memory that took."""
    state = state_dict(tensors)
    with clients.connect(url, name="publisher") as bus:
        before = peak_bytes()
        try:
            bus.publish(TOPIC, state, ack="accepted", timeout_s=timeout_s)
        except clients.TimeoutError:
            print(f"timed out grown={peak_bytes() - before}", flush=True)
        else:
            print(f"published grown={peak_bytes() - before}", flush=True)


class Reader:
    """A client that takes a large message off the wire, piece by piece.

    Attributes:
        ending: how the message has ended, once it has.
    """

    def __init__(self, url: str, tensors: int, overflow: str) -> None:
        self.ending = ""
        self._due = Pieces(encode_value(state_dict(tensors))[2])
        self._place = memoryview(bytearray(FRAME_PAYLOAD_BYTES_MAX))
        self._arrived_bytes = 0
        self._owed_bytes = 0
        self._link: Link = dial(parse_list(url), Hello(f"reader-{overflow}"), PATIENCE_S, self._allocate)
        body = encode_body(Subscribe(TOPIC, overflow, queue_bytes=QUEUE_BYTES))
        self._link.session.put(Frame(Kind.SUBSCRIBE, lane=Lane.CONTROL, number=SUBSCRIPTION, target=1, body=body))

    def _allocate(self, frame: Frame, size_bytes: int) -> memoryview:
        """Every chunk takes the place of the one before, which has been looked at."""
        return self._place[:size_bytes]

    def run(self) -> None:
        """Reads until the message has ended."""
        session, connection = self._link.session, self._link.connection
        poller = select.poll()
        while not self.ending:
            sent = session.flush(connection.send)
            poller.register(connection.fileno(), select.POLLIN | (0 if sent else select.POLLOUT))
            assert poller.poll(PATIENCE_S * 1000), "the broker is silent"
            read(session, connection, self._receive)
            assert session.failure is None, session.failure
        connection.close()

    def _receive(self, received: Received, now_ns: int) -> None:
        assert isinstance(received, Frame)
        if received.kind == Kind.DONE:
            print("subscribed", flush=True)
        elif received.kind == Kind.DELIVER:
            print("begun", flush=True)
        elif received.kind == Kind.STREAM_ABORT:
            self.ending = f"aborted code={decode_body(received.body, Failure).code}"
        elif received.kind == Kind.CHUNK:
            self._chunk(received)

    def _chunk(self, frame: Frame) -> None:
        assert frame.sequence == self._arrived_bytes
        due: list[Buffer] = []
        self._due.take(len(frame.payload), due)
        position = 0
        for piece in due:
            arrived = np.frombuffer(frame.payload[position : position + len(piece)], np.uint8)
            assert np.array_equal(arrived, np.frombuffer(piece, np.uint8)), f"other bytes behind {frame.sequence}"
            position += len(piece)
        self._arrived_bytes += position
        self._owed_bytes += position
        if self._owed_bytes >= QUEUE_BYTES // 4:
            credit = Frame(Kind.CREDIT, lane=Lane.CONTROL, number=SUBSCRIPTION, total_bytes=self._owed_bytes)
            self._link.session.put(credit)
            self._owed_bytes = 0
        if frame.flags & Flag.LAST:
            self.ending = f"complete bytes={self._arrived_bytes}"


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        publish(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        reader = Reader(sys.argv[2], int(sys.argv[3]), sys.argv[4])
        reader.run()
        print(reader.ending, flush=True)
