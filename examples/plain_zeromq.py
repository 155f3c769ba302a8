"""Publishes and subscribes with nothing but pyzmq and msgpack, as docs/wire.md section 16 says. Argument: zmq+tcp://..."""

import struct
import sys

import msgpack
import zmq

OPEN, DATA, GRANT, END, RESET, TOPIC, PUBLISH, DELIVER, SUBSCRIBE = (*range(1, 6), 1, 2, 3, 6)
FRAME = struct.Struct("<4B6I3Q")
broker = zmq.Context().socket(zmq.DEALER)
broker.connect(sys.argv[1].removeprefix("zmq+"))
sent, taken, unread = 0, 0, b""


def send(data: bytes) -> None:
    global sent
    broker.send(struct.pack("<BQ", DATA, sent) + data)
    sent += len(data) + 256


def send_frame(kind: int, number: int, target: int = 0, body: bytes = b"", payload: bytes = b"") -> None:
    send(FRAME.pack(kind, 0, 1, 0, number, target, 0, 1, len(body), len(payload), len(payload), 0, 0) + body + payload)


def receive(size: int) -> bytes:
    global taken, unread
    while len(unread) < size:
        first, *more = broker.recv_multipart()
        assert first[0] not in (END, RESET), first[9:]
        if first[0] == DATA:
            unread += (data := b"".join([first[9:], *more]))
            taken += len(data) + 256
            broker.send(struct.pack("<BQ", GRANT, taken + (4 << 20)))
    data, unread = unread[:size], unread[size:]
    return data


broker.send(bytes([OPEN]) + b"TBUSZMQ1")
hello = msgpack.packb({"type": "hello", "name": "plain"})
send(struct.pack("<8sHHI", b"\x93TBUS\r\n\x1a", 1, 1, len(hello)) + hello)
print(msgpack.unpackb(receive(struct.unpack("<8sHHI", receive(16))[3])))
send_frame(SUBSCRIBE, number=1, target=1, body=msgpack.packb({"filter": "greetings"}))
send_frame(TOPIC, number=1, body=msgpack.packb({"name": "greetings"}))
send_frame(PUBLISH, number=1, payload=msgpack.packb("hello"))
while True:
    kind, *_, body_bytes, payload_bytes, _, sequence, _ = FRAME.unpack(receive(52))
    content = receive(body_bytes + payload_bytes)[body_bytes:]
    if kind == DELIVER:
        print(sequence, msgpack.unpackb(content), flush=True)
