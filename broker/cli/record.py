"""What `tensorbus record` and `tensorbus replay` do: messages into a file, and out of it again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import msgspec

import clients
from broker.cli import values
from broker.cli.progress import Line, size_text, with_bar
from broker.errors import BrokerError, InvalidValue, TimeoutError
from broker.topics.names import check_filter, check_topic, is_reserved, matches
from clients.recordings import Reader, Recorded, Start, Writer, check_readable

SLEEP_S_MAX: Final = 3600.0
LOOK_S: Final = 0.2
"""How often what was recorded goes to the system, and its progress is told."""


class Told(msgspec.Struct, omit_defaults=True):
    """What was done, in the end; a line of `--json`.

    Attributes:
        file: the recording.
        messages: that were recorded, or published.
        payload_bytes: of these.
        topics: how many.
        duration_s: how long it took, in seconds.
        lost: of a recording, messages that came too fast.
        passed_over: of a replay, messages that were not published: not wanted, or of the broker's own topics.
        unreadable: of a replay, messages whose payload is not what their head says.
        problem: why a recording cannot be read to its end; empty when it can.
    """

    file: str
    messages: int
    payload_bytes: int
    topics: int
    duration_s: float
    lost: int = 0
    passed_over: int = 0
    unreadable: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a recording ends by itself; None does not bound it.

    Attributes:
        count: messages.
        duration_s: seconds.
        size_bytes: of the file; what was begun is finished.
    """

    count: int | None = None
    duration_s: float | None = None
    size_bytes: int | None = None


def record(
    url: str | None,
    topic_filter: str,
    file: Path,
    bounds: Bounds,
    *,
    append: bool,
    replay: str | int | None,
    overflow: str | None,
) -> Told:
    """Records until a bound is reached, or until Ctrl-C or SIGTERM.

    Args:
        url: of the broker.
        topic_filter: of the topics.
        file: must not be there, unless it is gone on with.
        bounds: when it ends by itself.
        append: goes on with a file.
        replay: begins with what the topics have kept.
        overflow: what happens when the disk is too slow; None is what is declared, else `block`.

    Raises:
        InvalidValue: a filter that cannot be, or a file that cannot be written.
        ConnectError: no broker is there.
        ConnectionClosed: the broker is gone, and did not come back in time; what was recorded is kept.
    """
    check_filter(topic_filter)
    started_s, topics = time.monotonic(), set[str]()
    with clients.connect(url, name=f"tensorbus-record-{os.getpid()}") as bus:
        writer = Writer(file, Start([topic_filter], time.time_ns(), url or ""), append=append)
        begun = append
        try:
            subscription = bus.subscribe(topic_filter, replay=replay, overflow=overflow)
            begun = True
            with subscription, _asked_to_end() as asked:
                try:
                    for message in _arrivals(subscription, writer, bounds, asked):
                        writer.add(message)
                        topics.add(message.topic)
                finally:
                    lost = subscription.dropped
                    writer.close(lost)
        except BrokerError:
            # Of which TimeoutError is an OSError as well.
            raise
        except OSError as error:
            # Nothing had room, not even the beginning.
            begun = append or file.stat().st_size > 0
            raise InvalidValue("recording", str(file), f"cannot be written on: {error.strerror}") from error
        finally:
            if not begun:
                # It would be in the way of the next try.
                file.unlink(missing_ok=True)
            writer.close()
    elapsed_s = round(time.monotonic() - started_s, 3)
    return Told(str(file), writer.messages, writer.payload_bytes, len(topics), elapsed_s, lost)


def _arrivals(
    subscription: clients.Subscription, writer: Writer, bounds: Bounds, asked: Callable[[], bool]
) -> Iterator[clients.Message]:
    """What comes, within bounds; now and then what was written goes to the system."""
    started_s = looked_s = time.monotonic()
    line = Line()
    while not asked():
        now_s = time.monotonic()
        if now_s - looked_s >= LOOK_S:
            looked_s = now_s
            writer.flush()
            line.show(f"{writer.messages} messages, {size_text(writer.size_bytes)}")
        if bounds.count is not None and writer.messages >= bounds.count:
            break
        if bounds.size_bytes is not None and writer.size_bytes >= bounds.size_bytes:
            break
        left_s = LOOK_S if bounds.duration_s is None else started_s + bounds.duration_s - now_s
        if left_s <= 0:
            break
        try:
            yield subscription.next(min(LOOK_S, left_s))
        except TimeoutError:
            continue
    line.clear()


@contextmanager
def _asked_to_end() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come. A message that is being written is finished first."""
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: asked.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def replay(
    url: str | None, file: Path, *, speed: float, filters: Sequence[str], prefix: str, asked_count: int | None
) -> Told:
    """Publishes what a recording has.

    Args:
        url: of the broker.
        file: the recording.
        speed: so many times as fast as it was recorded; infinite is as fast as the broker takes it.
        filters: which topics; empty is all.
        prefix: what the topics are put below; empty leaves them as they are.
        asked_count: messages, at most.

    Raises:
        InvalidValue: no recording, or a filter or prefix that cannot be.
        ConnectError: no broker is there.
        TimeoutError: a subscriber with overflow `block` does not keep up at all.
    """
    if prefix:
        check_topic(prefix)
    started_s = time.monotonic()
    told = Told(str(file), 0, 0, 0, 0.0)
    topics = set[str]()
    with Reader(file) as reader, clients.connect(url, name=f"tensorbus-replay-{os.getpid()}") as bus:
        first_ns: int | None = None
        for recorded in _chosen(reader, filters, told):
            head = recorded.head
            if is_reserved(head.topic) and not prefix:
                told.passed_over += 1
                continue
            try:
                value = check_readable(recorded)
            except BrokerError as error:
                told.unreadable += 1
                click.echo(f"tensorbus: {error}", err=True)
                continue
            if first_ns is None:
                first_ns = head.received_ns
                begun_s = time.monotonic()
            _wait_until(begun_s + (head.received_ns - first_ns) / 1e9 / speed)
            bus.publish(f"{prefix}/{head.topic}" if prefix else head.topic, value, headers=head.headers, lane=head.lane)
            topics.add(head.topic)
            told.messages += 1
            told.payload_bytes += head.size
            if told.messages == asked_count:
                break
        bus.flush(None)
    told.topics, told.problem = len(topics), reader.problem
    told.duration_s = round(time.monotonic() - started_s, 3)
    return told


def show(file: Path, filters: Sequence[str], *, as_json: bool, asked_count: int | None) -> Told:
    """Prints what a recording has, message by message, without a broker."""
    told, topics = Told(str(file), 0, 0, 0, 0.0), set[str]()
    with Reader(file) as reader:
        for recorded in _chosen(reader, filters, told, printed=True):
            click.echo(_described(recorded) if as_json else _line(recorded))
            topics.add(recorded.head.topic)
            told.messages += 1
            told.payload_bytes += recorded.head.size
            if told.messages == asked_count:
                break
    told.topics, told.problem = len(topics), reader.problem
    return told


def _chosen(reader: Reader, filters: Sequence[str], told: Told, *, printed: bool = False) -> Iterator[Recorded]:
    """The messages of the topics that one of the filters matches, with a bar that shows how far it is."""
    for topic_filter in filters:
        check_filter(topic_filter)
    for recorded in with_bar(reader, printed=printed):
        topic = recorded.head.topic
        if filters and not any(matches(each, topic) for each in filters):
            told.passed_over += 1
        else:
            yield recorded


def _wait_until(at_s: float) -> None:
    while (left_s := at_s - time.monotonic()) > 0:
        # What a file says may be longer than can be slept at once.
        time.sleep(min(left_s, SLEEP_S_MAX))


def _line(recorded: Recorded) -> str:
    return values.line_of(recorded.head.topic, lambda: check_readable(recorded))


def _described(recorded: Recorded) -> str:
    head = recorded.head
    described: dict[str, object] = {
        "topic": head.topic,
        "sequence": head.sequence,
        "sender": head.sender,
        "published_ns": head.published_ns,
        "received_ns": head.received_ns,
        "lane": head.lane,
        "digest": head.digest,
        "gap": head.gap,
        "headers": head.headers,
    }
    return values.object_of(described, lambda: {"value": check_readable(recorded)})


def summary(told: Told, verb: str) -> str:
    """What was done, in a line."""
    words = f"{verb} {told.messages} messages of {told.topics} topics"
    words += f", {size_text(told.payload_bytes)}, in {told.duration_s:.1f} s"
    for count, what in ((told.lost, "lost"), (told.passed_over, "passed over"), (told.unreadable, "unreadable")):
        if count:
            words += f"; {count} {what}"
    return words
