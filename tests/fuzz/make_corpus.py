"""Makes the corpus anew: `python -m tests.fuzz.make_corpus`. What is in it and would not be made again stays.

Frames, greetings, bodies, batches, claims and values are taken from conversations of real clients with a real broker;
the rest is written down here. One of each kind is enough: mutation does the rest. Inputs are short.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from broker.buffers import Buffer
from broker.collectives.claims import Claim, CollectiveKind, Quorum, ReduceOp
from broker.histograms import BUCKETS
from broker.protocol import links
from broker.protocol.bodies import Join, encode_body
from broker.protocol.frames import HEADER, HEADER_BYTES, Content, Flag, Frame, Kind, encode
from broker.protocol.measured import Measured
from broker.protocol.operations import Operations, Told
from broker.protocol.tensors import TensorMeta
from broker.transport.zeromq import messages
from tests.daemon import Daemon
from tests.fuzz import parsers
from tests.fuzz.conversations import Conversation, record, split
from tests.fuzz.running import CORPUS
from tests.transport.hellos import KEY_SHARE, alpn, in_records, written

BYTES_MAX = 1024
MEASURED = Measured([[1] * BUCKETS, [], []], [1000, 0, 0], 1)
OPERATIONS = Operations(
    [Told(1, 2000, 1000, 1, 0), Told(2, 500, 0, 0, 0)], [encode_body(Claim.barrier(10**9))], 1, 2, 3
)


def _frame(kind: int, body: bytes, **fields: int) -> bytes:
    buffers: list[Buffer] = []
    encode(Frame(kind, body=body, **fields), buffers)
    return b"".join(buffers)


WRITTEN: dict[str, Sequence[bytes | str]] = {
    "filter": (
        "gradients/+\ngradients/trainer-3", "gradients/#\ngradients", "#\n$sys/pressure", "+/b/#\na/b", "a/b\na/b",
        "$sys/+\n$sys/sessions", "a/+/c/+/e/#\na/b/c/d/e/f/g", "ü/+\nü/日本",
        "/".join("+" * 32) + "\n" + "/".join("a" * 32),
    ),
    "address": (
        "tcp://127.0.0.1:4870", "tcp://[::1]:0", "unix:///run/tensorbus.sock", "inproc://name", "ucx://host:1",
        "zmq+tcp://0.0.0.0:4872?curve=/etc/tensorbus/broker.key_secret&key=/a", "zmq+ipc:///run/z.sock",
        "tcp://a:1, tcp://b:2,unix:///c",
    ),
    "toml": (
        'listen = ["tcp://0.0.0.0:1", "unix:///a"]\nadmin = "off"\nname = "b"\nlog_level = "debug"\n',
        'sessions_max = 10\nhello_timeout_s = 1.5\nring_bytes = "4MiB"\nshared_memory = false\n',
        '[[topics]]\nfilter = "weights/#"\nretain = true\n\n[[topics]]\nfilter = "gradients/+"\nring_messages = 0\n'
        'overflow = "drop_oldest"\nmax_message_bytes = "1GiB"\nlease_s = 3\n',
        "heartbeat_interval_s = 1\nheartbeat_timeout_s = 1e2\n", "a.b.c = [1, [2, [3]]]\nd = 1979-05-27T07:32:00Z\n",
        "sessions_max = 0x7fffffffffffffff\n", "hello_timeout_s = inf\n", "x = " + "[" * 400,
        "sessions_max = 0x7" + "f" * 4000, "a" + ".a" * 400 + " = 1", "a" + ".b" * 15 + " = 1",
    ),
    "http": (
        "GET /healthz HTTP/1.1\r\nHost: localhost:4871\r\n\r\n",
        "GET /api/v1/topics?filter=gradients/%23 HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n",
        "GET /metrics HTTP/1.1\r\nHost: [::1]:4871\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n",
        "POST /api/v1/topics HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 3\r\n\r\nabc",
        "GET /?filter=a&filter=b%00%ff HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ),
    "zeromq": (
        messages.OPEN, messages.HEADER.pack(2, 0) + b"bytes", messages.HEADER.pack(3, 1 << 22),
        messages.HEADER.pack(4, 300), messages.reset("because of ü\n"), b"\xff\x00",
    ),
    "claim": tuple(
        encode_body(claim)
        for claim in (
            Claim(CollectiveKind.ALL_REDUCE, ReduceOp.MEAN, None, "float16", (3, 4), 9, quorum=Quorum(2, 5, name="w")),
            Claim(CollectiveKind.BROADCAST, None, 1, "complex128", (), 10**9, 64),
            Claim(CollectiveKind.REDUCE_SCATTER, ReduceOp.SUM, None, "int8_blocks", (8,), 1, stands_for="f (480,)"),
            Claim.barrier(10**9),
        )
    ),
    "tensor": tuple(
        bytes([len(encode_body(meta))]) + encode_body(meta) + bytes(meta.nbytes)
        for meta in (
            TensorMeta("float32", (2, 3), "F"), TensorMeta("bfloat16", (4,)), TensorMeta("uint16", (1, 0, 2)),
            TensorMeta("complex64", (), byte_order=">"),
        )
    ),
    "batch": (
        b"\x00", b"\x01" + bytes(16),
        b"\x02\x01\x00\x01\x00\x02\x00\x00\x00" + bytes(8) + b"\x80ab" + bytes(16),
    ),
    "frame": (
        *(_frame(kind, b"") for kind in Kind),
        _frame(Kind.MEASURED, encode_body(MEASURED)),
        _frame(Kind.OPERATIONS, encode_body(OPERATIONS), number=1, target=1),
    ),
    "body": tuple(
        bytes([len(parsers._BODIES) - number]) + encode_body(body) for number, body in ((2, MEASURED), (1, OPERATIONS))
    ),
    "broker": (
        _frame(Kind.MEASURED, encode_body(MEASURED)),
        _frame(Kind.JOIN, encode_body(Join("f", 1)), target=1)
        + _frame(Kind.OPERATIONS, encode_body(OPERATIONS), number=1, target=1),
    ),
    "link": (
        links.greet(links.Greeting(1, 2, 0, 1, 0), bytes(32)), "10.0.0.1:4000", "[fe80::1]:65535",
    ),
    "tls": (
        in_records(written()), in_records(written((KEY_SHARE, bytes(40)), alpn(b"h2", b"tensorbus-worker/3"))),
        in_records(written(alpn(b"tensorbus-worker/63")), [1, 3, 30, 50]), in_records(written(kind=2)),
        b"\x15\x03\x01\0\x02\x02\x28",
    ),
}  # fmt: skip


def main() -> None:
    """Writes a file for each parser."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        conversations: list[Conversation] = []
        for number, address in enumerate(("tcp://127.0.0.1:0", f"unix://{folder}/bus.sock")):
            (folder / str(number)).mkdir()
            with Daemon(listen=(address,), admin="off") as daemon:
                conversations += record(daemon.url, folder / str(number))
    made: dict[str, dict[bytes, None]] = {name: {} for name in parsers.PARSERS}
    for conversation in conversations:
        for side in (conversation.client, conversation.broker):
            greeting, frames = split(side)
            made["hello"].setdefault(greeting)
            for parser, data in _parts(frames):
                made[parser].setdefault(data)
            if side is conversation.client:
                made["broker"].update(dict.fromkeys(_passages(frames)))
    for parser, inputs in WRITTEN.items():
        for each in inputs:
            made[parser].setdefault(each.encode() if isinstance(each, str) else each)
    for parser, found in made.items():
        file = CORPUS / f"{parser}.hex"
        before = [bytes.fromhex(line) for line in file.read_text().splitlines()] if file.exists() else []
        lines = [data.hex() for data in dict.fromkeys([*before, *_few(parser, found)]) if len(data) <= BYTES_MAX]
        file.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


def _parts(frames: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
    """What there is to parse in frames, each with its parser."""
    names = [kind.__name__ for kind in parsers._BODIES]
    for frame in frames:
        kind, flags, _, content, *_, body_bytes, _, _, _, _ = HEADER.unpack_from(frame)
        body, payload = frame[HEADER_BYTES : HEADER_BYTES + body_bytes], frame[HEADER_BYTES + body_bytes :]
        yield "frame", frame
        count = int.from_bytes(frame[16:20], "little")
        if kind == Kind.CONTRIBUTE and body:
            yield "claim", body
        elif kind in (Kind.PUBLISH, Kind.DELIVER):
            if body:
                yield "body", bytes([names.index("MessageBody")]) + body
            if flags & Flag.BATCH:
                yield "batch", bytes([count & 0xFF]) + payload
            elif content == Content.TENSOR and not flags & (Flag.CHUNKED | Flag.SHARED):
                at = body.find(b"\x82\xa5dtype")
                meta = body[at:]
                yield "tensor", bytes([len(meta)]) + meta + payload
            elif not flags & (Flag.CHUNKED | Flag.SHARED):
                yield "value", bytes([content]) + payload
        elif body:
            name = _BODY_OF.get(kind)
            if name is not None:
                yield "body", bytes([names.index(name)]) + body


_BODY_OF = {
    Kind.TOPIC: "Topic", Kind.SUBSCRIBE: "Subscribe", Kind.DECLARE: "Declare", Kind.SETTLE: "Settle", Kind.JOIN: "Join",
    Kind.ERROR: "Failure", Kind.CLOSE: "Failure", Kind.JOINED: "Membership", Kind.CHANGED: "Membership",
    Kind.QUERY: "Query", Kind.RELEASE: "Release", Kind.DROPPED: "Dropped", Kind.POLICY: "PublishPolicy",
    Kind.FAILED: "CollectiveFailure", Kind.RESUME: "Resume",
}  # fmt: skip


def _passages(frames: Sequence[bytes]) -> Iterator[bytes]:
    """Frames that follow each other, as many as are short enough together."""
    passage = b""
    for frame in frames:
        if len(passage) + len(frame) > BYTES_MAX:
            yield passage
            passage = b""
        passage += frame
    yield passage


_SHAPE_BYTES = {"frame": 4, "body": 2, "value": 2}


def _few(parser: str, found: dict[bytes, None]) -> Iterator[bytes]:
    """One of each kind of frame, body and value, and of each length up to a factor of two; of the others all."""
    seen = set()
    for data in found:
        shape = data[: _SHAPE_BYTES.get(parser, BYTES_MAX)], len(data).bit_length()
        if shape not in seen:
            seen.add(shape)
            yield data


if __name__ == "__main__":
    main()
