"""What `tensorbus topics` does: asks a running broker's HTTP interface for its topics and what holds for each."""

from __future__ import annotations

import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection, RemoteDisconnected
from typing import Final
from urllib.parse import quote

import click
import msgspec

from broker.admin.shapes import TopicView
from broker.cli.terminal import printable
from broker.errors import BrokerError, ConnectError
from broker.topics.names import check_filter
from broker.transport.addresses import Address
from broker.transport.tcp import is_loopback
from broker.transport.tls.contexts import dialler_context
from clients.connection import environment

TIMEOUT_S: Final = 10.0
_ADVICE: Final = "is a broker running with its HTTP interface there? --admin HOST:PORT names another address"


class _Answer(msgspec.Struct):
    topics: list[msgspec.Raw]


class _Refusal(msgspec.Struct):
    error: str


def show(admin: str, topic_filter: str | None, *, as_json: bool) -> None:
    """Prints the topics that a filter matches, or all, by name.

    Args:
        admin: host:port of the HTTP interface.
        topic_filter: which topics; None shows all.
        as_json: one JSON object per line, as in /api/v1/topics; else a paragraph for each topic.

    Raises:
        InvalidValue: a filter that cannot be.
        ConnectError: nobody answers there, or somebody who is no broker.
    """
    path = "/api/v1/topics"
    if topic_filter is not None:
        path += f"?filter={quote(check_filter(topic_filter), safe='')}"
    topics = _ask(admin, path)
    for number, raw in enumerate(topics):
        if as_json:
            click.echo(bytes(raw))
        else:
            click.echo("\n" * (number > 0) + _paragraph(msgspec.json.decode(raw, type=TopicView)))
    if not topics and not as_json:
        click.echo(f"no topic of {topic_filter}" if topic_filter else "no topics", err=True)


def _ask(admin: str, path: str) -> list[msgspec.Raw]:
    host, _, port = admin.rpartition(":")
    address = Address("tcp", host=host.removeprefix("[").removesuffix("]"), port=int(port))
    folder = environment.tls()
    # Not urllib, which would ask the proxy of the environment.
    plain = HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)
    if not folder:
        return _ask_over(plain, f"http://{admin}", path)
    private = HTTPSConnection(address.host, address.port, timeout=TIMEOUT_S, context=dialler_context(folder))
    try:
        return _ask_over(private, f"https://{admin}", path)
    except _NoTls:
        # Of one that listens on loopback alone. A token is not told to others in the clear.
        if not is_loopback(address):
            raise
        return _ask_over(plain, f"http://{admin}", path)


class _NoTls(ConnectError):
    """What answers does not speak TLS."""


def _ask_over(connection: HTTPConnection, url: str, path: str) -> list[msgspec.Raw]:
    token = environment.token()
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise BrokerError(msgspec.json.decode(body, type=_Refusal).error)
        return msgspec.json.decode(body, type=_Answer).topics
    except ssl.SSLCertVerificationError as error:
        raise ConnectError(url, f"its certificate is not accepted: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise _NoTls(url, f"what answers there does not speak TLS ({_ADVICE})") from error
    except RemoteDisconnected as error:
        raise ConnectError(
            url, f"{error}; if it speaks https, name certificates, $TENSORBUS_TLS ({_ADVICE})"
        ) from error
    except OSError as error:
        raise ConnectError(url, f"{error.strerror or error}: {_ADVICE}") from error
    except (HTTPException, msgspec.DecodeError) as error:
        raise ConnectError(url, f"what answers there is no broker's HTTP interface ({_ADVICE})") from error
    except ValueError as error:
        # Not told, because it may be a secret.
        raise ConnectError(url, "that is no host's name, or $TENSORBUS_TOKEN is no token") from error
    finally:
        connection.close()


def _paragraph(topic: TopicView) -> str:
    kept = f"keeps {topic.retained_messages} messages, {topic.retained_bytes} bytes"
    if topic.retained_messages:
        kept += f", from sequence {topic.oldest_sequence}"
    waiting = f"{topic.held_back_publishers} publishers wait"
    if topic.held_back_by:
        waiting += f" for {', '.join(topic.held_back_by)}"
    rows = [
        (held.setting, _text(held.value), f"{held.filter}, {held.origin}" if held.filter else held.origin)
        for held in topic.policy
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(
        printable(line)
        for line in [
            topic.name,
            f"  published {topic.published_messages} messages, {topic.published_bytes} bytes; refused "
            f"{topic.refused_messages}; the next sequence is {topic.next_sequence}",
            f"  {kept}; {topic.subscriptions} subscriptions, {waiting}",
            *(f"  {name:{widths[0]}}  {value:{widths[1]}}  {origin}".rstrip() for name, value, origin in rows),
        ]
    )


def _text(value: bool | int | float | str | None) -> str:
    if value is None or value == "":
        return "-"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
