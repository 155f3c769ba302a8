"""Forks a subscriber that writes down what it receives, kills it again and again, and starts it where the record ends.

record      1 1 \\n 2 2 \\n 3 3 \\n 4       one line for each message: its sequence, its value; a last one may be torn
next one    replay = 4

python -m tests.system.recorder URL RECORD KILLS SEED
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from pathlib import Path

import clients

TOPIC = "accepted"
STOP = "stop"
LINES_MAX = 60
"""A subscriber lives for at most so many messages."""


def whole_lines(record: Path) -> list[tuple[int, str]]:
    """Sequence and value of each message in a record."""
    lines = record.read_text().split("\n")[:-1] if record.exists() else []
    return [(int(sequence), value) for sequence, value in (line.split() for line in lines)]


def subscribe(url: str, record: Path, pipe: int) -> None:
    """Goes on behind the last whole line of the record, up to the message that says STOP."""
    known = whole_lines(record)
    # Of a torn line the message comes again.
    record.write_text("".join(f"{sequence} {value}\n" for sequence, value in known))
    start = known[-1][0] + 1 if known else 1
    with clients.connect(url, name="recorder") as bus, record.open("ab", buffering=0) as file:
        for message in bus.subscribe(TOPIC, replay=start):
            if message.gap or message.value == STOP:
                return
            # In two pieces, so that a kill can tear the line.
            file.write(b"%d " % message.sequence)
            file.write(b"%d\n" % message.value)
            os.write(pipe, b".")


def live(url: str, record: Path) -> tuple[int, int]:
    """Forks a subscriber; returns its process id and the end of the pipe on which it tells of each line."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        status = 1
        try:
            subscribe(url, record, writing)
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    os.close(writing)
    return child, reading


def main(url: str, path: str, kills: str, seed: str) -> None:
    generator, record = random.Random(int(seed)), Path(path)
    for _ in range(int(kills)):
        child, pipe = live(url, record)
        lines = generator.randint(1, LINES_MAX)
        while lines > 0 and (told := os.read(pipe, lines)):
            lines -= len(told)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(pipe)
        print("killed", flush=True)
    child, pipe = live(url, record)
    while os.read(pipe, 4096):
        pass
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
