"""Publishing, subscribing and asking from a terminal: what `tensorbus pub`, `sub` and `request` do."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final

import click

import clients
from broker.cli import values as cli_values
from broker.cli.options import echo_json
from broker.cli.streams import discard_output
from broker.errors import InvalidValue

_LOOK_S: Final = 1.0
"""How often it is looked, while no message comes, whether the output still has a reader."""


class Form(Enum):
    """How messages are printed."""

    TEXT = "text"
    JSON = "json"
    RAW = "raw"


def values_of(value: str | None, *, as_json: bool) -> Iterator[object]:
    """The values that a command line stands for: one, or with `-` and JSON one for each line of the standard input.

    Raises:
        InvalidValue: something is not JSON.
    """
    if value is None:
        yield None
    elif value != "-":
        yield _parse_json(value, "value") if as_json else value
    elif not as_json:
        yield sys.stdin.buffer.read()
    else:
        for number, line in enumerate(sys.stdin.buffer, start=1):
            if line.strip():
                yield _parse_json(line, f"line {number} of the standard input")


def _parse_json(text: str | bytes, what: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidValue(what, text, f"is not JSON: {error}") from error


def publish(
    url: str | None,
    topic: str,
    values: Iterable[object],
    *,
    count: int,
    lane: str | None,
    ack: bool,
    as_json: bool = False,
) -> None:
    """Publishes each value `count` times; returns when the broker has them all."""
    with clients.connect(url, name=_name("pub")) as bus:
        for value in values:
            for _ in range(count):
                sequence = bus.publish(topic, value, lane=lane, ack="accepted" if ack else None)
                if ack and as_json:
                    echo_json({"topic": topic, "sequence": sequence})
                elif ack:
                    click.echo(sequence)
        bus.flush()


def subscribe(
    url: str | None,
    topic_filter: str,
    form: Form,
    count: int | None,
    *,
    replay: str | int | None,
    overflow: str | None,
    reconnect_timeout_s: float,
) -> None:
    """Prints messages until there were `count`, until Ctrl-C, or until nobody reads the output any more.

    Raises:
        ConnectionClosed: the broker is gone and did not come back in time.
    """
    try:
        with clients.connect(url, name=_name("sub"), reconnect_timeout_s=reconnect_timeout_s) as bus:
            subscription = bus.subscribe(topic_filter, replay=replay, overflow=overflow)
            try:
                _print_messages(subscription, form, count)
            finally:
                _tell_dropped(subscription.dropped)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        discard_output()


def _tell_dropped(dropped: int) -> None:
    if dropped:
        click.echo(f"tensorbus: {dropped} messages were dropped, because this program did not keep up", err=True)


def _print_messages(subscription: clients.Subscription, form: Form, count: int | None) -> None:
    output = sys.stdout.buffer
    printed = 0
    while count is None or printed < count:
        message = _next_while_read(subscription)
        if form is Form.RAW:
            output.write(message.payload)
        elif form is Form.JSON:
            output.write(f"{cli_values.message_as_json(message)}\n".encode())
        else:
            output.write(f"{cli_values.message_as_text(message)}\n".encode())
        output.flush()
        printed += 1


def _next_while_read(subscription: clients.Subscription) -> clients.Message:
    """The next message, for which nobody has to wait who has stopped reading, such as `head`.

    Raises:
        BrokenPipeError: the other end of the standard output is closed.
    """
    while True:
        try:
            return subscription.next(timeout_s=_LOOK_S)
        except clients.TimeoutError:
            readers = select.poll()
            readers.register(sys.stdout.fileno(), 0)
            if readers.poll(0):
                raise BrokenPipeError("nobody reads the standard output any more") from None


def ask(url: str | None, topic: str, values: Iterable[object], *, as_json: bool, timeout_s: float) -> None:
    """Asks with each value in turn and prints the values of the replies."""
    with clients.connect(url, name=_name("request")) as bus:
        for value in values:
            reply = bus.request(topic, value, timeout_s=timeout_s).value
            click.echo(cli_values.as_json(reply) if as_json else cli_values.as_text(reply))


def _name(command: str) -> str:
    return f"tensorbus-{command}-{os.getpid()}"
