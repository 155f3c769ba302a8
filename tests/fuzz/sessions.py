"""Mutates recorded conversations against a live daemon, with good clients beside: `python -m tests.fuzz.sessions`.

    real clients --record--> conversations --mutate--> bytes --over tcp and unix--> daemon <-- good clients

A mutation keeps most frames whole, so that it gets far: frames are left out, repeated, moved and changed in their
headers, bodies and payloads, and now and then bytes are changed wherever they are. Connections end in order, by a
reset, in the middle of a frame, or stay open and silent for a while. On a Unix-domain socket descriptors go along at
times: files that are not what they should be.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from broker.protocol.frames import HEADER_BYTES
from tests.daemon import Daemon
from tests.fuzz.conversations import Conversation, connect, record, split
from tests.fuzz.mutations import mutated
from tests.fuzz.witnesses import POLICY, Witnesses

OPEN_MAX: Final = 16
"""Connections of bad clients at the same time; the oldest one is ended for the next."""
FRAMES_MAX: Final = 400
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        conversations: how many were begun.
        sent_bytes: of all of them.
        counts: what good clients did meanwhile.
        faults: what good clients, or the daemon's log, had to complain of.
    """

    conversations: int = 0
    sent_bytes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.conversations} conversations, {self.sent_bytes} bytes; beside them {self.counts}; "
            f"{len(self.faults)} faults"
        )


def fuzz(*, seed: int, conversations: int | None = None, seconds: float | None = None) -> Outcome:
    """Has bad clients speak to a daemon of its own, so many times or so long."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "settings.toml").write_text(POLICY, encoding="utf-8")
        recorded = [
            each
            for number, address in enumerate(("tcp://127.0.0.1:0", f"unix://{folder}/recorded.sock"))
            for each in _record(address, folder / str(number))
        ]
        listen = ("tcp://127.0.0.1:0", f"unix://{folder}/bus.sock")
        with Daemon("--config", str(folder / "settings.toml"), listen=listen, admin="off") as daemon:
            outcome = _fuzz(daemon, recorded, Random(seed), conversations, seconds)
            if not daemon.running:
                outcome.faults.append(f"the daemon has ended: {daemon.errors[-2000:]}")
            elif (status := daemon.terminate()) != 0:
                outcome.faults.append(f"the daemon ended with status {status}")
            outcome.faults += _complaints(daemon.errors)
    return outcome


def _record(address: str, folder: Path) -> list[Conversation]:
    folder.mkdir()
    with Daemon(listen=(address,), admin="off") as daemon:
        return record(daemon.url, folder)


def _fuzz(
    daemon: Daemon, recorded: Sequence[Conversation], random: Random, count: int | None, seconds: float | None
) -> Outcome:
    outcome = Outcome()
    halves = [split(conversation.client) for conversation in recorded]
    pool = [frame for _, frames in halves for frame in frames]
    open_ones: deque[socket.socket] = deque()
    end_s = time.monotonic() + (seconds or 0.0)
    with Witnesses(daemon.urls[random.randrange(2)]) as witnesses:
        while daemon.running and not witnesses.faults:
            if outcome.conversations >= count if count is not None else time.monotonic() >= end_s:
                break
            greeting, frames = random.choice(halves)
            sock = connect(random.choice(daemon.urls))
            open_ones.append(sock)
            outcome.conversations += 1
            outcome.sent_bytes += _speak(sock, _mutations(greeting, frames, pool, random), random)
            while len(open_ones) > OPEN_MAX:
                _end(open_ones.popleft(), random)
        while open_ones:
            _end(open_ones.popleft(), random)
    outcome.counts, outcome.faults = dict(witnesses.counts), list(witnesses.faults)
    return outcome


def _mutations(greeting: bytes, frames: Sequence[bytes], pool: Sequence[bytes], random: Random) -> Iterator[bytes]:
    """The parts of a conversation that has gone wrong."""
    yield greeting if random.random() < 0.95 else mutated([greeting], random)
    start = random.randrange(len(frames)) if frames and random.random() < 0.3 else 0
    rate = random.choice((0.02, 0.1, 0.5))
    for frame in frames[start : start + FRAMES_MAX]:
        if random.random() >= rate:
            yield frame
            continue
        change = random.randrange(8)
        if change == 0:
            continue
        if change == 1:
            yield frame * random.choice((2, 3, 50))
        elif change == 2:
            yield random.choice(pool) + frame
        elif change == 3:
            yield mutated([frame, *pool[:50]], random)
        elif change == 4:
            yield frame[: random.randrange(len(frame))]
        else:
            yield _changed(frame, random)


def _changed(frame: bytes, random: Random) -> bytes:
    """A frame whose lengths are right, with another header, body or payload."""
    header = bytearray(frame[:HEADER_BYTES])
    rest = frame[HEADER_BYTES:]
    if rest and random.random() < 0.5:
        body_bytes = int.from_bytes(header[20:24], "little")
        body, payload = rest[:body_bytes], rest[body_bytes:]
        if body and random.random() < 0.7:
            body = mutated([body], random)
        elif payload:
            payload = mutated([payload], random)
        header[20:24] = len(body).to_bytes(4, "little")
        header[24:28] = len(payload).to_bytes(4, "little")
        return bytes(header) + body + payload
    # Any field but the lengths.
    place = random.choice([*range(20), *range(28, HEADER_BYTES)])
    header[place] = random.choice((0, 1, 2, 3, 0x7F, 0xFF, random.randrange(256)))
    return bytes(header) + rest


def _speak(sock: socket.socket, parts: Iterator[bytes], random: Random) -> int:
    """Says it, in pieces, and reads what there is to read; returns how much could be said."""
    sent = 0
    sock.setblocking(False)
    reads = random.random() < 0.8
    with suppress(OSError):
        for part in parts:
            if sock.family == socket.AF_UNIX and random.random() < 0.02:
                _send_rubbish(sock, random)
            rest = memoryview(part)
            while rest:
                try:
                    size = sock.send(rest[: random.choice((1, 7, 4096, 1 << 20))])
                except BlockingIOError:
                    return sent
                sent += size
                rest = rest[size:]
                if reads:
                    with suppress(BlockingIOError):
                        sock.recv(1 << 16)
    return sent


def _send_rubbish(sock: socket.socket, random: Random) -> None:
    """Descriptors that are no arenas: a pipe, a directory, memory that is not sealed, in the middle of a frame."""
    files = [*os.pipe(), os.memfd_create("rubbish"), os.open("/", os.O_RDONLY)]
    try:
        socket.send_fds(sock, [b"\0"], files[: random.randrange(1, 5)])
    finally:
        for file in files:
            os.close(file)


def _end(sock: socket.socket, random: Random) -> None:
    if random.random() < 0.3:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def _complaints(log: str) -> list[str]:
    """What a daemon logs when it did something that it should not."""
    marks = ("Traceback", "Exception in callback", "CRITICAL")
    return [log[max(0, log.index(mark) - 500) :][:4000] for mark in marks if mark in log]


def main() -> int:
    arguments = argparse.ArgumentParser(description="Fuzzes a daemon with mutated conversations.")
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--seed", type=int, default=1)
    wanted = arguments.parse_args()
    outcome = fuzz(seed=wanted.seed, seconds=wanted.seconds)
    print(outcome)
    for fault in outcome.faults:
        print(fault)
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
