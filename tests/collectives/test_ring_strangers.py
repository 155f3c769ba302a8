"""The engine of links beside a stranger: that doubt is said and settled, and that nobody is trusted."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from broker.collectives import ring
from broker.collectives.ring import Outcome, Task
from tests.collectives.rings import SECOND_NS
from tests.collectives.stranger import ABORT, HURRY, MEET, PIECE, READY, Stranger
from tests.collectives.test_ring import LONG, all_reduce, begin, ended

PIECE_BYTES = 256 << 10
pytestmark = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine is not compiled")


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    each = Stranger()
    yield each
    each.close()


@pytest.fixture
def strangers() -> Iterator[Stranger]:
    each = Stranger(3)
    yield each
    each.close()


# Doubt.


def test_a_link_that_breaks_before_this_one_is_ready_is_no_doubt(strangers: Stranger) -> None:
    task, array = begin(strangers.engine, 1, 3)
    strangers.meet(1, b"claim", array.tobytes())
    strangers.hang_up(2)
    assert ended(strangers.engine, task) == Outcome.OVER
    word = strangers.hear_until(ABORT)
    assert (word.code, word.sequence) == (Outcome.OVER, 1)


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("scratch", [None, False, True])
@pytest.mark.parametrize("elements", [1, LONG])
def test_a_link_that_breaks_after_this_one_is_ready_leaves_it_undecided(
    elements: int, scratch: bool | None, committed: bool
) -> None:
    """In place, and where the result belongs elsewhere."""
    each = Stranger()
    engine = each.engine
    if scratch is None:
        task, array = begin(engine, elements)
    else:
        array = np.ones(elements, np.float32)
        task = Task(all_reduce(elements, 2), array.copy(), array, 1000 * SECOND_NS, scratch=scratch)
        engine.submit(task)
    each.meet(1, b"claim", b"\0\0\0\0" if elements == 1 else b"")
    if elements == 1:
        each.hear_until(READY)
    else:
        play(each, 4 * elements)
    each.hang_up()
    assert ended(engine, task) == Outcome.UNDECIDED
    assert scratch or (array == 1).all()
    assert engine.run(Task(all_reduce(1, 2), array[:1].copy(), None, SECOND_NS)) == Outcome.OVER
    assert engine.settle(task, committed=committed) == (Outcome.COMMITTED if committed else Outcome.OVER)
    assert (array == (1 if not committed else 1 if elements == 1 else 2)).all() or (scratch and not committed)
    assert engine.settle(task, committed=not committed) == task.status
    assert engine.committed == (1 if committed else 0)
    each.close()


def play(each: Stranger, array_bytes: int) -> None:
    """Takes the part of position 1 in a ring of two, with an array of ones, until all but its own READY is said."""
    half = -(-array_bytes // 128) * 64
    parts = [(0, half), (half, array_bytes)]
    ones = np.ones(array_bytes // 4, np.float32).tobytes()
    twos = np.full(array_bytes // 4, 2, np.float32).tobytes()

    def talk() -> None:
        # What is to be added, and the sum of the other part: the same stretch and the other one.
        for step, data in enumerate((ones, twos)):
            start, stop = parts[step]
            for piece, at in enumerate(range(start, stop, PIECE_BYTES)):
                each.say(1, PIECE, step=step, first=piece, body=data[at : min(at + PIECE_BYTES, stop)])

    talker = threading.Thread(target=talk)
    talker.start()
    heard, ready = 0, False
    while heard < array_bytes or not ready:
        word = each.hear()
        heard += len(word.body) if word.kind == PIECE else 0
        ready |= word.kind == READY
    talker.join()


def test_who_falls_silent_when_this_one_is_ready_is_named_and_leaves_it_undecided(strangers: Stranger) -> None:
    engine = strangers.engine
    task, array = begin(engine, 1, 3, timeout_s=1.0)
    for position in (1, 2):
        strangers.meet(position, b"claim", array.tobytes())
    strangers.say(2, READY)
    word = strangers.hear_until(HURRY)
    assert word.second == SECOND_NS
    assert ended(engine, task) == Outcome.UNDECIDED
    assert (task.positions, task.timeout_ns) == ([1], SECOND_NS)
    assert engine.settle(task, committed=False) == Outcome.MISSING
    assert (array == 1).all()


def test_an_abort_is_certain_also_for_who_is_ready(strangers: Stranger) -> None:
    engine = strangers.engine
    task, array = begin(engine, 1, 3)
    for position in (1, 2):
        strangers.meet(position, b"claim", array.tobytes())
    strangers.hear_until(READY)
    strangers.say(2, ABORT, code=Outcome.MISSING, first=0b010, second=7)
    assert ended(engine, task) == Outcome.MISSING
    assert (task.positions, task.timeout_ns) == ([1], 7)
    word = strangers.hear_until(ABORT, 1)
    assert (word.code, word.first, word.second) == (Outcome.MISSING, 0b010, 7)
    assert (array == 1).all()


def test_who_has_gone_on_without_being_ready_has_failed_it(strangers: Stranger) -> None:
    task, array = begin(strangers.engine, 1, 3)
    for position in (1, 2):
        strangers.meet(position, b"claim", array.tobytes())
    strangers.hear_until(READY)
    strangers.meet(1, b"claim", array.tobytes(), sequence=2)
    assert ended(strangers.engine, task) == Outcome.MISSING
    assert task.positions == [0]
    # What it has said of the next one is not lost.
    again, _ = begin(strangers.engine, 1, 3)
    strangers.meet(2, b"claim", array.tobytes(), sequence=2)
    for position in (1, 2):
        strangers.say(position, READY, sequence=2)
    assert ended(strangers.engine, again) == Outcome.COMMITTED


def test_a_deadline_is_over_for_all_when_it_is_over_for_one(strangers: Stranger) -> None:
    task, array = begin(strangers.engine, LONG, 3)
    for position in (1, 2):
        strangers.meet(position, b"claim")
    strangers.hear_until(PIECE, 1)
    strangers.say(1, HURRY, second=5)
    assert strangers.hear_until(HURRY, 2).second == 5
    assert ended(strangers.engine, task) == Outcome.MISSING
    assert (task.positions, task.timeout_ns) == ([2], 5)
    assert (array == 1).all()


def test_an_interrupt_elsewhere_is_told(strangers: Stranger) -> None:
    task, _ = begin(strangers.engine, LONG, 3)
    for position in (1, 2):
        strangers.meet(position, b"claim")
    strangers.say(2, HURRY, code=Outcome.INTERRUPTED, first=0b100)
    assert ended(strangers.engine, task) == Outcome.INTERRUPTED
    assert task.positions == [2]


def test_ending_an_engine_that_is_ready_is_doubt(stranger: Stranger) -> None:
    task, array = begin(stranger.engine, 1)
    stranger.meet(1, b"claim", array.tobytes())
    stranger.hear_until(READY)
    stranger.engine.end()
    assert ended(stranger.engine, task) == Outcome.UNDECIDED
    assert task.positions == []
    assert stranger.engine.settle(task, committed=True) == Outcome.COMMITTED
    assert (array == 2).all()


# Strangers who lie.

LIES = {
    "another magic": lambda each: each.send(1, b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n"),
    "an unknown word": lambda each: each.say(1, 9),
    "no word": lambda each: each.say(1, 0),
    "a long ready": lambda each: each.say(1, READY, body=b"x"),
    "a claim that is too long": lambda each: each.say(1, MEET, first=509, body=bytes(509)),
    "a claim longer than its word": lambda each: each.say(1, MEET, first=9, body=b"claim"),
    "a huge meet": lambda each: each.say(1, MEET, first=5, size=0xFFFFFFFF),
    "an array too many": lambda each: each.meet(1, b"claim", bytes(4)),
    "a meet too many": lambda each: (each.meet(1, b"claim"), each.meet(1, b"claim")),
    "a huge piece": lambda each: (each.meet(1, b"claim"), each.say(1, PIECE, size=0xFFFFFFFF)),
    "a short piece": lambda each: (each.meet(1, b"claim"), each.say(1, PIECE, body=b"abcd")),
    "a piece of a later step": lambda each: (each.meet(1, b"claim"), each.say(1, PIECE, step=1, size=PIECE_BYTES)),
    "a piece of no step": lambda each: (each.meet(1, b"claim"), each.say(1, PIECE, step=2**32 - 1, size=PIECE_BYTES)),
    "another piece": lambda each: (each.meet(1, b"claim"), each.say(1, PIECE, first=1, size=PIECE_BYTES)),
    "no outcome": lambda each: each.say(1, ABORT, code=99),
    "a commit": lambda each: each.say(1, ABORT, code=Outcome.COMMITTED),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_breaks_the_engine(stranger: Stranger, lie: str) -> None:
    task, array = begin(stranger.engine, LONG)
    LIES[lie](stranger)
    assert ended(stranger.engine, task) == Outcome.BROKEN
    assert (array == 1).all()
    assert stranger.engine.run(Task(all_reduce(1, 2), array[:1], array[:1], SECOND_NS)) == Outcome.OVER


def test_what_others_do_not_send_is_not_waited_for_long(stranger: Stranger) -> None:
    """A ready that comes too soon: it has not got what it is ready with."""
    task, array = begin(stranger.engine, LONG, timeout_s=0.05)
    stranger.meet(1, b"claim")
    stranger.say(1, READY)
    assert ended(stranger.engine, task) == Outcome.MISSING
    assert (array == 1).all()


@pytest.mark.parametrize("seed", range(30))
def test_rubbish_does_no_harm(seed: int) -> None:
    choice = random.Random(seed)
    each = Stranger()
    each.sockets[1].settimeout(0)
    elements = choice.choice([1, 2000, LONG])
    tasks = [begin(each.engine, elements, timeout_s=0.02) for _ in range(5)]
    for _ in range(40):
        try:
            if choice.random() < 0.05:
                each.send(1, choice.randbytes(choice.randrange(1, 300)))
            size = choice.choice([0, 0, 5, 9, 4000, PIECE_BYTES])
            each.say(
                1, choice.randrange(1, 6), code=choice.randrange(0, 9), step=choice.randrange(0, 4),
                sequence=choice.randrange(0, 7), first=choice.choice([0, 1, 5, 2**63]),
                second=choice.randrange(0, 2**64), body=choice.randbytes(size),
            )  # fmt: skip
        except OSError:
            break
    each.hang_up()
    for task, array in tasks:
        assert ended(each.engine, task) not in (Outcome.PENDING, Outcome.COMMITTED)
        assert (array == 1).all()
    each.close()


def test_ctrl_c_fails_the_operation_everywhere(stranger: Stranger) -> None:
    def interrupt() -> None:
        stranger.hear_until(MEET)
        os.kill(os.getpid(), signal.SIGINT)

    array = np.ones(LONG, np.float32)
    task = Task(all_reduce(LONG, 2), array, array, 1000 * SECOND_NS)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        stranger.engine.run(task)
    thread.join()
    assert (task.status, task.positions) == (Outcome.INTERRUPTED, [0])
    word = stranger.hear_until(ABORT)
    assert (word.code, word.first) == (Outcome.INTERRUPTED, 0b01)
    assert (array == 1).all()
