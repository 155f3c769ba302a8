"""Sessions for the tests of this folder, and bytes for them."""

from __future__ import annotations

from broker.buffers import Buffer
from broker.protocol.bodies import Hello, Welcome
from broker.protocol.frames import Frame
from broker.protocol.receiver import Received
from broker.protocol.session import Allocate, Session

SECOND_NS = 1_000_000_000
WELCOME = Welcome(1, "broker", 256 << 10, 1024, 16 << 20, 5000, 30_000)


def allocate(frame: Frame, size_bytes: int) -> memoryview:
    """Fresh memory."""
    return memoryview(bytearray(size_bytes))


def session(
    name: str | None = None,
    *,
    now_ns: int = 0,
    allocate: Allocate = allocate,
    interval_s: float = 5,
    timeout_s: float = 30,
    scratch: memoryview | None = None,
) -> Session:
    """A client's end when it has a name, else the broker's."""
    return Session(
        hello=Hello(name) if name is not None else None,
        now_ns=now_ns,
        allocate=allocate,
        heartbeat_interval_s=interval_s,
        heartbeat_timeout_s=timeout_s,
        scratch=scratch,
    )


def sent_by(its: Session) -> bytes:
    """All that a session wants to send, taken by the link."""
    data = b""
    while buffers := its.to_send():
        part = b"".join(bytes(buffer) for buffer in buffers)
        its.sent(len(part))
        data += part
    return data


def read(its: Session, data: Buffer, now_ns: int = 0, size_max: int = 1 << 30) -> list[Received]:
    """What comes out of a session that receives these bytes, up to `size_max` at a time."""
    found: list[Received] = []
    rest = memoryview(data)
    while rest:
        size = 0
        for buffer in its.receive_buffers():
            part = rest[: min(len(buffer), size_max - size)]
            buffer[: len(part)] = part
            rest = rest[len(part) :]
            size += len(part)
        assert size, f"{its} has no room for the next bytes"
        its.received(size, now_ns, lambda received, _: found.append(received))
    return found


def pair(now_ns: int = 0) -> tuple[Session, Session]:
    """A client's and a broker's end that are open."""
    client, broker = session("client", now_ns=now_ns), session(now_ns=now_ns)
    read(broker, sent_by(client), now_ns)
    broker.welcome(WELCOME)
    read(client, sent_by(broker), now_ns)
    return client, broker


def opened(*, allocate: Allocate = allocate, scratch: memoryview | None = None) -> Session:
    """A broker's end that is open."""
    broker = session(allocate=allocate, scratch=scratch)
    read(broker, sent_by(session("client")))
    return broker
