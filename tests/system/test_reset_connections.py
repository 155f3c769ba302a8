"""Connections that are reset while some of their bytes have not been read: both ends notice without a heartbeat."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

import uvloop

import clients
import clients.aio
from broker.limits import CHUNK_BYTES
from broker.protocol.bodies import Hello, Topic, Welcome, encode_body
from broker.protocol.frames import Flag, Frame, Kind
from broker.protocol.handshake import VERSION_MAX, encode_greeting
from tests.clients.serving import ServingThread
from tests.protocol.test_session import wire

PATIENCE_S = 60.0
NEVER_S = 3600.0
CHUNKS = 8


def reset(connection: socket.socket) -> None:
    """Ends it as the kernel does for a process that is killed over unread bytes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def opening(kind: Kind, number: int, target: int) -> list[Frame]:
    """A message of which CHUNKS chunks come and the rest does not."""
    total_bytes = 100 * CHUNK_BYTES
    first = Frame(kind, Flag.CHUNKED, number=number, target=target, stream=1, count=0, total_bytes=total_bytes)
    payload = bytes(CHUNK_BYTES)
    return [first, *(Frame(Kind.CHUNK, stream=1, sequence=n * CHUNK_BYTES, payload=payload) for n in range(CHUNKS))]


def test_the_broker_notices_a_reset_over_unread_bytes_and_lets_the_next_publisher_go_on() -> None:
    with (
        ServingThread("tcp://127.0.0.1:0", heartbeat_interval_s=NEVER_S, heartbeat_timeout_s=NEVER_S) as broker,
        clients.connect(broker.url, name="reader") as reader,
        clients.connect(broker.url, name="next") as following,
    ):
        subscription = reader.subscribe("parts")
        host, port = broker.url.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as publisher:
            publisher.sendall(encode_greeting(Hello("killed")))
            assert publisher.recv(4096)
            topic = Frame(Kind.TOPIC, number=1, body=encode_body(Topic("parts")))
            publisher.sendall(wire(topic, *opening(Kind.PUBLISH, 1, 0)))
            reset(publisher)
        # In the same lane, behind what will never be complete.
        following.publish("parts", "after", timeout_s=PATIENCE_S)
        message = subscription.next(PATIENCE_S)
        assert (message.value, message.gap, subscription.dropped) == ("after", 1, 1)


def test_the_asynchronous_client_notices_a_reset_over_unread_bytes() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    seconds_ms = int(NEVER_S * 1000)
    welcome = Welcome(1, "broker", CHUNK_BYTES, 1024, 16 << 20, seconds_ms, seconds_ms)

    def serve() -> None:
        connection, _ = listener.accept()
        assert connection.recv(4096)
        connection.sendall(encode_greeting(welcome, VERSION_MAX, VERSION_MAX))
        assert connection.recv(4096)
        topic = Frame(Kind.TOPIC, number=1, body=encode_body(Topic("parts", "somebody")))
        connection.sendall(wire(Frame(Kind.DONE, target=0), topic, *opening(Kind.DELIVER, 1, 1)))
        reset(connection)

    thread = threading.Thread(target=serve)
    thread.start()

    async def wait() -> None:
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        async with await clients.aio.connect(url, reconnect_timeout_s=0.0) as bus:
            try:
                await bus.subscribe("parts", timeout_s=PATIENCE_S)
            except clients.ConnectionClosed:
                return
            raise AssertionError("nobody answered, and yet it is subscribed")

    with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(wait())
    thread.join()
