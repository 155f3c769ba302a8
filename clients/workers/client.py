"""The synchronous client of a broker with several workers: a client for each, made when it is first needed.

What is about one topic or one group goes to the worker that has it, and is there what it is at any broker. What is
about the topics of a filter goes to all. So an inner client knows nothing of the others, and neither does its worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from broker.errors import ConnectionClosed, InvalidValue
from broker.limits import ANSWER_TIMEOUT_S, TOPICS_PER_SESSION_MAX
from broker.protocol.codes import Code
from clients.asking.replies import Replies
from clients.client import Client
from clients.connection.lifetimes import FORKED, with_locks
from clients.groups import Group
from clients.subscriptions import Subscription
from clients.workers.parts import Inners
from clients.workers.subscriptions import MergedSubscription
from clients.workers.turns import Turns

F = TypeVar("F", bound=Callable[..., object])


class Connect(Protocol):
    """Connects with one worker."""

    def __call__(self, worker: int, workers: int, called: str) -> Client: ...


def _at_owner(method: F) -> F:
    """A method about one topic, or one group: its owner's client has it."""
    name = method.__name__

    @wraps(method)
    def called(bus: WorkersClient, topic: str, *arguments: object, **options: object) -> object:
        return getattr(bus._owner(topic), name)(topic, *arguments, **options)

    return cast("F", called)


def _publishing(method: F) -> F:
    """`publish`: as `_at_owner`, but what each topic's owner has for it is kept, as messages may be many."""

    @wraps(method)
    def called(bus: WorkersClient, topic: str, value: object, **options: object) -> object:
        try:
            publish = bus._publishers[topic]
        except (KeyError, TypeError):
            publish = bus._owner(topic).publish
            if isinstance(topic, str) and len(bus._publishers) < TOPICS_PER_SESSION_MAX:
                bus._publishers[topic] = publish
        return publish(topic, value, **options)

    return cast("F", called)


def _asking(method: F) -> F:
    """As `_at_owner`, of a method that waits for a reply: a handler that calls it steps aside."""
    at_owner = _at_owner(method)

    @wraps(method)
    def called(bus: WorkersClient, topic: str, *arguments: object, **options: object) -> object:
        if not bus._turns.held:
            return at_owner(bus, topic, *arguments, **options)
        with bus._turns.aside():
            return at_owner(bus, topic, *arguments, **options)

    return cast("F", called)


def _about_filter(method: F) -> F:
    """`subscribe` or `respond`: at the owner of a topic, or at all workers."""
    name = method.__name__

    @wraps(method)
    def called(bus: WorkersClient, topic_filter: str, *arguments: object, **options: object) -> Subscription:
        functions = {key: options[key] for key in ("handler", "function") if options.get(key) is not None}
        options |= {key: bus._turns.handler(each) for key, each in functions.items() if callable(each)}
        arguments = tuple(bus._turns.handler(each) if callable(each) else each for each in arguments)
        parts: list[Subscription] = []
        with ExitStack() as undoing:
            for client in bus._owners(topic_filter):
                parts.append(getattr(client, name)(topic_filter, *arguments, **options))
                undoing.callback(parts[-1].close)
            undoing.pop_all()
        read = name == "subscribe" and not functions
        return parts[0] if len(parts) == 1 else MergedSubscription(parts, read=read)

    return cast("F", called)


def _gathering(method: F) -> F:
    """`request_many`: a handler that waits for one of the replies steps aside."""

    @wraps(method)
    def called(bus: WorkersClient, topic: str, *arguments: object, **options: object) -> Replies:
        replies = bus._owner(topic).request_many(topic, *arguments, **options)  # type: ignore[arg-type]
        inner = replies._aside

        @contextmanager
        def aside() -> Iterator[None]:
            with bus._turns.aside(), inner():
                yield

        replies._aside = aside
        return replies

    return cast("F", called)


def _declaring(method: F) -> F:
    """`declare`: at the owner of a topic, or at all workers."""

    @wraps(method)
    def called(bus: WorkersClient, topic_filter: str, **settings: object) -> None:
        check_dead_letter(topic_filter, settings.get("dead_letter"))
        workers = bus._clients.owners(topic_filter)
        # All of them are there before it holds at any.
        owners = [bus._client(worker) for worker in workers]
        with telling_where(topic_filter, workers) as agreed:
            for worker, client in zip(workers, owners, strict=True):
                client.declare(topic_filter, **settings)  # type: ignore[arg-type]
                agreed.append(worker)

    return cast("F", called)


def _of_group(method: F) -> F:
    """`group`: at its owner."""

    @wraps(method)
    def called(bus: WorkersClient, name: str, **options: object) -> Group:
        return bus._owner(name).group(name, **options)  # type: ignore[arg-type]

    return cast("F", called)


@contextmanager
def telling_where(topic_filter: str, workers: Sequence[int]) -> Iterator[list[int]]:
    """Gives a list of the workers that have agreed to a policy; an error is told at which of them it holds."""
    agreed: list[int] = []
    try:
        yield agreed
    except BaseException as error:
        if len(workers) > 1 and (agreed or not isinstance(error, InvalidValue)):
            asked, others = workers[len(agreed)], workers[len(agreed) + 1 :]
            error.add_note(
                f"declare({topic_filter!r}) at the broker's {len(workers)} workers: agreed: {_listed(agreed)}; "
                f"failed at: {asked}; not asked: {_listed(others)}; declare it again"
            )
        raise


def _listed(workers: Sequence[int]) -> str:
    return ", ".join(map(str, workers)) or "none"


def check_dead_letter(topic_filter: str, dead_letter: object) -> None:
    """Refuses a dead-letter topic of somebody's own choice: another worker may have it.

    Raises:
        InvalidValue: it is one.
    """
    if dead_letter:
        raise InvalidValue(
            "dead_letter", dead_letter, f"may be another worker's than the topics of {topic_filter!r}: leave it out, "
            "and dead letters go to $dead/ and the topic's name",
        )  # fmt: skip


class WorkersClient(Client):
    """As Client, of all workers together; `clients.connect` returns one where a broker has several."""

    def __init__(self, home: Client, workers: int, connect: Connect) -> None:
        """Args:
        home: of the first worker.
        workers: how many there are, as it has said.
        connect: makes the clients of the others.
        """
        # As of any client, for whoever looks at its connection: that with the first worker.
        self._core, self._driver, self._handlers, self._callbacks = (
            home._core, home._driver, home._handlers, home._callbacks,
        )  # fmt: skip
        self._connect = connect
        self._clients = Inners(home, workers)
        self._publishers: dict[str, Callable[..., object]] = {}
        self._opening = threading.Lock()
        self._turns = Turns()
        self._closed: ConnectionClosed | None = None
        with_locks.add(self)

    def _client(self, worker: int) -> Client:
        """The client of a worker.

        Raises:
            ConnectError, PermissionDenied: there is none yet, and the worker cannot be reached, or refuses.
            ConnectionClosed: this client is closed.
        """
        client = self._clients[worker]
        if client is not None:
            return client
        with self._opening:
            client = self._clients[worker]
            if client is None:
                if self._closed is not None:
                    raise self._closed.again()
                # The broker names who does not name themselves: the first worker has.
                name = self.name or f"client-{self._core.session_number}"
                client = self._clients[worker] = self._connect(worker, self._clients.workers, name)
            return client

    def _owner(self, name: str) -> Client:
        return self._client(self._clients.owner(name))

    def _owners(self, topic_filter: str) -> Iterator[Client]:
        return map(self._client, self._clients.owners(topic_filter))

    def everywhere(self) -> list[Client]:
        """The clients of all workers, in the order of these."""
        return [self._client(worker) for worker in range(self._clients.workers)]

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment, with each worker that was needed so far."""
        return self._clients.connected

    publish = _publishing(Client.publish)
    pressure = _at_owner(Client.pressure)
    request = _asking(Client.request)
    request_many = _gathering(Client.request_many)
    declare = _declaring(Client.declare)
    subscribe = _about_filter(Client.subscribe)
    respond = _about_filter(Client.respond)
    group = _of_group(Client.group)

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike = "float32") -> npt.NDArray[np.generic]:
        """An uninitialised array to be filled and published; it is copied once, unless its topic is the first worker's.

        See Client.
        """
        return self._clients.home.empty(shape, dtype)

    def flush(self, timeout_s: float | None = ANSWER_TIMEOUT_S) -> None:
        """Waits until everything that was published so far has reached the broker; see Client."""
        for client in self._clients:
            client.flush(timeout_s)

    def close(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Closes in order: what was published still leaves. Calls that wait raise ConnectionClosed."""
        with self._opening:
            self._closed = self._closed or ConnectionClosed("the client was closed", Code.NORMAL)
        # Handlers of other connections may be waiting for the turn of the one that calls this.
        with self._turns.aside(), ExitStack() as stack:
            # All of them, also when this is interrupted.
            for client in self._clients:
                stack.callback(client.close, timeout_s)

    def forked(self) -> None:
        """In a forked child: the connections that it has are closed, and it makes no others."""
        self._opening = threading.Lock()
        self._closed = ConnectionClosed(FORKED)

    def __repr__(self) -> str:
        return f"<Client {self.name!r} {self._clients!r}>"


def everywhere(bus: Client) -> Sequence[Client]:
    """The clients that together see all that a broker has: of its workers, in their order, or the one there is."""
    return bus.everywhere() if isinstance(bus, WorkersClient) else (bus,)
