"""One harness for each parser that reads what a stranger may have written.

A harness takes any bytes and returns nothing. It may raise only the errors that the parser's documentation names, and
passes over those; whatever else it raises is a fault of the parser. Where a parser has an inverse, or there is a second
way to the same answer, the harness compares.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Final

import msgspec
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser

from broker import config
from broker.admin import hosts as admin_hosts
from broker.admin import views as admin_views
from broker.collectives.claims import Claim
from broker.errors import ConfigError, InvalidValue, LimitExceeded, PermissionDenied, ProtocolError
from broker.limits import FRAME_PAYLOAD_BYTES_MAX
from broker.protocol import bodies, links, pressure, sharing
from broker.protocol.batches import split_batch
from broker.protocol.bodies import Hello, decode_body
from broker.protocol.frames import Frame
from broker.protocol.handshake import answer_to_stranger, decode_greeting, encode_greeting
from broker.protocol.measured import Measured
from broker.protocol.operations import Operations
from broker.protocol.receiver import Received
from broker.protocol.session import Session, make_scratch
from broker.protocol.strangers import describe
from broker.protocol.tensors import TensorMeta, read_tensor
from broker.protocol.values import decode_value
from broker.state import BrokerState, Settings
from broker.topics.names import check_filter, check_topic, covers, levels, matches
from broker.topics.policy import check_declaration
from broker.topics.trie import Trie
from broker.transport import addresses
from broker.transport.tls.hello import NOBODY, has_whole_hello, worker_named
from broker.transport.zeromq.messages import Malformed, read_header, reason_of
from tests.state.harness import Talk, feed

Parser = Callable[[bytes], None]

_SCRATCH: Final = make_scratch()
_PAYLOAD: Final = memoryview(bytearray(FRAME_PAYLOAD_BYTES_MAX))
"""What a frame's payload is received into. It is the one thing that a length reserves: of one frame in each session."""
_HELLO: Final = encode_greeting(Hello("fuzz"))
_BODIES: Final[Sequence[type[msgspec.Struct]]] = (
    bodies.Topic, bodies.MessageBody, bodies.Subscribe, bodies.Resume, bodies.Settle, bodies.Subscribed, bodies.Declare,
    bodies.PublishPolicy, bodies.Failure, bodies.Join, bodies.Membership, bodies.CollectiveFailure, bodies.TookPart,
    pressure.Query, pressure.View, pressure.Dropped, pressure.Pressure, sharing.Release, links.Decision, links.Trouble,
    Measured, Operations,
)  # fmt: skip


def frame(data: bytes) -> None:
    """The frames of an open session, whose bytes come in pieces as long as the first one of them says."""
    session = Session(
        hello=None, now_ns=1, allocate=_payload, heartbeat_interval_s=5.0, heartbeat_timeout_s=30.0, scratch=_SCRATCH
    )
    feed(session, _HELLO, _ignore, 1)
    piece = 1 + data[0] if data and data[0] & 1 else len(data) or 1
    for start in range(0, len(data), piece):
        feed(session, data[start : start + piece], _ignore, 1)


def _payload(frame: Frame, size_bytes: int) -> memoryview:
    return _PAYLOAD[:size_bytes]


def _ignore(received: Received, now_ns: int) -> None:
    repr(received)


def broker(data: bytes) -> None:
    """What a client says to a broker after its hello, as a whole: its session may end, and nobody else's does."""
    talk = Talk()
    reader, publisher, bad = talk.peer(), talk.peer(), talk.peer()
    reader.subscribe("good")
    bad.inject(data)
    talk.tick(0.2)
    publisher.publish("good", b"still here")
    assert publisher.is_open
    assert reader.is_open
    if talk.state.router.topics["good"].policy.max_message_bytes is None:
        # Else the client has declared that all topics have shorter messages, which it may.
        assert b"still here" in reader.payloads()
    bad.die()


def hello(data: bytes) -> None:
    """The first bytes of a session, at both ends, and what is said to somebody who speaks something else."""
    try:
        decode_greeting(memoryview(data))
    except ProtocolError:
        describe(data[:16])
        answer_to_stranger(data[:16])


def body(data: bytes) -> None:
    """The body of each kind of frame; the first byte says which."""
    if not data:
        return
    kind = _BODIES[data[0] % len(_BODIES)]
    try:
        found = decode_body(data[1:], kind)
        if isinstance(found, Measured):
            found.check()
        elif isinstance(found, bodies.Declare):
            check_declaration(found.filter, found.settings())
        elif isinstance(found, bodies.Join) and found.links is not None:
            links.check_reach(found.links)
        elif isinstance(found, bodies.MessageBody) and found.tensor is not None:
            found.tensor.check()
    except (ProtocolError, InvalidValue, LimitExceeded, PermissionDenied):
        return


def claim(data: bytes) -> None:
    """What a rank says that it wants reduced."""
    try:
        found = decode_body(data, Claim)
        found.check(4)
    except (ProtocolError, InvalidValue):
        return
    assert found.rounds >= 1
    found.describe()


def value(data: bytes) -> None:
    """A payload as a reader decodes it: MessagePack, bytes, or a structure; the first byte says which."""
    if not data:
        return
    try:
        decode_value(data[0] % 5, None, data[1:])
    except (ProtocolError, InvalidValue):
        return


def tensor(data: bytes) -> None:
    """The description of a tensor, as long as the first byte says, and its elements."""
    if not data:
        return
    elements = bytearray(data[1 + data[0] :])
    try:
        meta = decode_body(data[1 : 1 + data[0]], TensorMeta)
        array = read_tensor(meta, elements)
    except (ProtocolError, InvalidValue):
        return
    assert array.nbytes == meta.nbytes == len(elements)


# What this imports is not what an input costs.
tensor(b"\x17\x82\xa5dtype\xa8bfloat16\xa5shape\x90\0\0")


def batch(data: bytes) -> None:
    """The messages of a batch, of which the first byte says how many there are."""
    try:
        entries = split_batch(data[1:], data[0] if data else 0)
    except ProtocolError:
        return
    assert sum(16 + len(entry[2]) + len(entry[3]) for entry in entries) == len(data[1:])


def topic_filter(data: bytes) -> None:
    """A topic filter and a topic, with a line end between them; the trie has to say the same as the rule."""
    wanted, _, name = data.decode("utf-8", "surrogateescape").partition("\n")
    try:
        check_filter(wanted)
        check_topic(name, reserved=True)
    except InvalidValue:
        return
    trie: Trie[int] = Trie()
    trie.add(wanted, 1)
    assert bool(list(trie.match(name))) == matches(wanted, name) == covers(wanted, name)
    levels(wanted)


def address(data: bytes) -> None:
    """The address of a broker, or several; what was understood is written as it was read."""
    try:
        found = addresses.parse_list(data.decode("utf-8", "surrogateescape"))
    except InvalidValue:
        return
    for each in found:
        assert addresses.parse(str(each)) == each


@contextmanager
def _file_of(data: bytes) -> Iterator[Path]:
    """A file that is not on a disk."""
    descriptor = os.memfd_create("fuzz.toml")
    try:
        os.write(descriptor, data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def toml(data: bytes) -> None:
    """A file of settings."""
    with _file_of(data) as file:
        try:
            loaded = config.load({}, {}, file)
        except ConfigError:
            return
    config.describe(loaded)


class _Nobody:
    """What a parser of aiohttp speaks to."""

    def pause_reading(self) -> None: ...

    def resume_reading(self, *arguments: object, **options: object) -> None: ...


_LOOP: Final = asyncio.new_event_loop()
_STATE: Final = BrokerState(Settings())
for _name in ("a", "a/b", "metrics/trainer-0/loss"):
    _STATE.router.topic(_name)
_SERVER: Final = SimpleNamespace(state=_STATE)


def http(data: bytes) -> None:
    """A request to the HTTP interface: who is asked, and for what."""
    parser = HttpRequestParser(_Nobody(), _LOOP, 2**16)  # type: ignore[arg-type]
    try:
        messages, _, _ = parser.feed_data(data)
    except HttpProcessingError:
        return
    for message, _ in messages:
        admin_hosts.is_allowed(message.headers.get("Host", ""), frozenset({"broker.example"}))
        try:
            list(admin_views.topics_of(_SERVER, message.url.query.get("filter", "#")))  # type: ignore[arg-type]
        except InvalidValue:
            continue


def zeromq(data: bytes) -> None:
    """The first part of a ZeroMQ message."""
    try:
        read_header(data)
    except Malformed:
        return
    assert reason_of(data).isprintable()


def link(data: bytes) -> None:
    """What one rank says to another one that it dials, and the addresses at which ranks say that they are."""
    if len(data) >= links.HELLO_BYTES:
        greeting = links.read_greeting(data[: links.HELLO_BYTES])
        if greeting is not None:
            assert not links.is_greeting(data[: links.HELLO_BYTES], greeting, b"secret")
    try:
        links.address_of(data.decode("utf-8", "surrogateescape"))
    except InvalidValue:
        return


def tls(data: bytes) -> None:
    """What somebody who begins to speak TLS says first to one of several workers."""
    worker, whole = worker_named(data), has_whole_hello(data)
    assert NOBODY <= worker < 100
    for length in (len(data) - 1, len(data) // 2):
        if length > 0 and has_whole_hello(data[:length]):
            assert whole
            assert worker_named(data[:length]) == worker


PARSERS: Final[Mapping[str, Parser]] = MappingProxyType(
    {
        "frame": frame,
        "broker": broker,
        "hello": hello,
        "body": body,
        "claim": claim,
        "value": value,
        "tensor": tensor,
        "batch": batch,
        "filter": topic_filter,
        "address": address,
        "toml": toml,
        "http": http,
        "zeromq": zeromq,
        "link": link,
        "tls": tls,
    }
)
