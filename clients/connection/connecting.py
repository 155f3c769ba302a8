"""How a synchronous client comes into being."""

from __future__ import annotations

from collections.abc import Callable

from broker.limits import CONNECT_TIMEOUT_S
from clients.client import Client
from clients.connection import environment
from clients.connection.dialling import asked
from clients.connection.reconnected import Reconnected
from clients.connection.securing import Folder
from clients.workers.client import WorkersClient


def connect(
    url: str | None = None,
    *,
    name: str = "",
    token: str | None = None,
    tls: Folder | None = None,
    tenant: str = "",
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    reconnect_timeout_s: float = 30.0,
    on_reconnect: Callable[[Reconnected], None] | None = None,
    shared_memory: bool = True,
    tracing: bool | None = None,
) -> Client:
    """Connects to a broker.

    Args:
        url: an address such as tcp://host:port, tls://host:port, unix:///path or inproc://name (a broker inside this
            process, started when nobody else has), or several with commas between, which are tried in turn and fail
            over. Default: $TENSORBUS_URL, else tcp://127.0.0.1:4870.
        name: what the client is called in messages, logs and tables; default: the broker gives one.
        token: proves who this is; default: $TENSORBUS_TOKEN.
        tls: the folder with ca.crt, and tls.crt and tls.key to prove who this is, for addresses at tls://; default:
            $TENSORBUS_TLS, else those are trusted whom the system trusts. The files are read for each connection.
        tenant: whose topics and groups to see.
        connect_timeout_s: for the first connection, in seconds.
        reconnect_timeout_s: how long to try again after the connection was lost, in seconds; 0 never tries. After that
            the client is closed and every call raises ConnectionClosed.
        on_reconnect: called, on a thread of its own, after the client has connected and subscribed again; its
            argument says what may have been lost.
        shared_memory: whether large messages go and come in shared memory where the broker is on this host.
        tracing: whether what this client does becomes spans of OpenTelemetry, and messages carry their traces' context;
            default: $TENSORBUS_TRACING, else not.

    Raises:
        InvalidValue: a malformed address or one of an unknown scheme; tls where no address is at tls://; or tracing
            without OpenTelemetry installed.
        ConnectError: no broker can be reached; the text has the reason for each address.
        PermissionDenied: the broker does not let this client in.
    """
    dialling = asked(
        url,
        name=name,
        token=token,
        tls=tls,
        tenant=tenant,
        connect_timeout_s=connect_timeout_s,
        reconnect_timeout_s=reconnect_timeout_s,
        on_reconnect=on_reconnect,
        shared_memory=shared_memory,
    )
    kind = Client
    if environment.tracing() if tracing is None else tracing:
        from clients.processing import tracer
        from clients.traced import TracedClient

        # Without OpenTelemetry this says so, before anything is dialled.
        tracer()
        kind = TracedClient
    client, workers = kind(dialling), dialling.greeting.workers
    if workers == 1:
        return client
    return WorkersClient(client, workers, lambda *worker: kind(dialling.of_worker(*worker)))
