"""Runs the daemon: the event loop, signals, and the lines that say where it listens."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import uvloop

from broker import logs
from broker.answers import show_to_clients
from broker.cli.options import echo_json
from broker.cli.streams import settle_output
from broker.config import ADMIN_OFF, Config
from broker.errors import InvalidValue
from broker.limits import LOG_INTERVAL_S
from broker.server import Server
from broker.server_admission import dialled
from broker.server_seat import Seat
from broker.telemetry import exporting_tracer
from broker.tracing import Traces

log = logging.getLogger(__name__)
Echo = Callable[[Mapping[str, object]], None]

GC_ALLOCATIONS: Final = 20_000
"""Between two collections. Messages are freed by their reference count; cycles are rare and small."""


def run(config: Config, read_again: Callable[[], Config], *, as_json: bool = False) -> None:
    """Serves until SIGINT or SIGTERM, then drains. A second signal ends the process at once.

    Args:
        config: the settings.
        read_again: gives them as they are when SIGHUP comes.
        as_json: tells where it listens in lines of JSON.

    Raises:
        InvalidValue: an address is malformed or of an unknown scheme; or /proc is not there.
        ListenError: an address cannot be listened on, or strangers could get in there.
        ConfigError: the users, tokens or the audit log cannot be used.
    """
    check_system()
    for address in config.listen:
        if address.startswith("inproc:"):
            raise InvalidValue("listen", address, "no other process could reach it; listen at tcp:// or unix://")
    handler = logs.start(sys.stderr, config.log_level, config.log_format)
    _raise_descriptor_limit()
    echo = echo_json if as_json else _echo_words

    def serve(config: Config, tell: Echo, seat: Seat | None = None, lifeline: int | None = None) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(config, handler, read_again, tell, seat, lifeline))
        finally:
            handler.tell_left_out(at_the_end=True)

    if config.workers == 1:
        serve(config, echo)
        return
    from broker.cli.workers import Workers

    try:
        with Workers(config, serve, echo, read_again) as workers:
            workers.run()
    finally:
        handler.tell_left_out(at_the_end=True)


def check_system(proc: Path = Path("/proc")) -> None:
    """Refuses to run where the system tells nothing of itself: neither memory nor descriptors could be watched.

    Raises:
        InvalidValue: it does not.
    """
    if not (proc / "self/statm").exists():
        raise InvalidValue("system", str(proc), "tells nothing of processes: mount it, mount -t proc proc /proc")


def _tell_left_out(loop: asyncio.AbstractEventLoop, handler: logs.EventHandler) -> None:
    """Again and again: lines of which there were too many are told of, also when nothing more is logged."""
    handler.tell_left_out()
    loop.call_later(LOG_INTERVAL_S, _tell_left_out, loop, handler)


def _raise_descriptor_limit() -> None:
    """Each session takes a descriptor, and the soft limit, often 1,024, is there for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _settle_memory() -> None:
    """Takes what the start has made out of the garbage collector's way, which would walk it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


def _echo_words(told: Mapping[str, object]) -> None:
    for word, address in told.items():
        click.echo(f"{word} on {address}")


async def _serve(
    config: Config,
    handler: logs.EventHandler,
    read_again: Callable[[], Config],
    echo: Echo,
    seat: Seat | None,
    lifeline: int | None,
) -> None:
    """Serves until a signal, or the end of whoever has started this worker.

    Args:
        config: the settings.
        handler: of the log.
        read_again: see `run`.
        echo: is told where this listens, once it does.
        seat: of one of several workers; None where the broker is one.
        lifeline: a descriptor that is readable once this worker is to end.
    """
    stopping = _catch_signals()
    if lifeline is not None:
        _end_with(lifeline, stopping)
    _tell_left_out(asyncio.get_running_loop(), handler)
    server = Server(config, seat)
    server.admission.also("permissions and quotas", lambda: _take_over(server, read_again))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.reload)
    # One that has come since the start (broker/__main__.py) is heard now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    show_to_clients(server)
    traces = Traces(server.state, exporting_tracer(config.name)) if config.tracing else None
    admin = None
    server.start(config.listen)
    try:
        lines = [{"listening": str(dialled(listener.address, config))} for listener in server.listeners]
        if config.admin != ADMIN_OFF:
            # Importing aiohttp takes as long as all the rest of the start.
            from broker.admin.http import Admin

            admin = Admin(server)
            lines.append({"admin": await admin.start(config.admin)})
        _settle_memory()
        _tell(lines, echo)
        await stopping.wait()
    finally:
        await server.stop()
        if admin is not None:
            await admin.stop()
        if traces is not None:
            traces.close()


def _tell(lines: Sequence[Mapping[str, str]], echo: Callable[[Mapping[str, object]], None]) -> None:
    """Says where it listens. A broker goes on, also when whoever has started it reads no further."""
    try:
        for line in lines:
            echo(line)
    except OSError as error:
        settle_output()
        log.warning("server.output_closed listening=%s cause=%s", lines, error.strerror)


def _end_with(lifeline: int, stopping: asyncio.Event) -> None:
    """Has the end of somebody else stop this process, in order."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(lifeline)
        stopping.set()

    loop.add_reader(lifeline, ended)


def _take_over(server: Server, read_again: Callable[[], Config]) -> None:
    """Has the server follow the permissions and quotas of the configuration as it is now, all of it or nothing.

    Raises:
        ConfigError: it cannot be used; everything stays as it was.
    """
    config = read_again()
    server.replace_permissions(config.permissions)
    server.replace_quotas(config.tenants)


def _catch_signals() -> asyncio.Event:
    """An event that the first SIGINT or SIGTERM sets; the second one does what it does by default."""
    stopping = asyncio.Event()

    def stop(number: signal.Signals) -> None:
        if stopping.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    return stopping
