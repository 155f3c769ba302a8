"""What `tensorbus doctor` does: looks at the way to a broker and at this machine, and says what would be better."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import click
import msgspec

import clients
from broker.cli.connect import ask, connect, duration_text
from broker.cli.doctor_choice import address_findings, device_findings, group_findings, session_findings
from broker.cli.doctor_links import link_finding
from broker.cli.doctor_measure import bandwidth, clock_offset, copy_bandwidth, loopback_bandwidth, ping
from broker.cli.doctor_system import Finding, State, kernel_settings, versions
from broker.cli.terminal import printable
from broker.collectives import shm
from broker.errors import BrokerError
from clients.connection.environment import broker_url
from clients.connection.views import Way, way

CLOCK_OFFSET_S_MAX: Final = 0.01
"""Beyond it the times of messages from several hosts cannot be compared."""
_MARKS: Final = {State.INFO: " ", State.OK: "+", State.WARNING: "!", State.BAD: "x"}
_START: Final = "tensorbus serve  (or name the broker: tensorbus doctor URL, or TENSORBUS_URL=URL)"
_LISTEN: Final = "tensorbus serve --listen tcp://127.0.0.1:4870 --listen unix:///tmp/tensorbus-4870.sock"


class _Server(msgspec.Struct):
    name: str
    version: str
    process: int
    uptime_s: float
    python: str
    compiled_modules: int
    shared_memory: bool
    listeners: list[str]
    sessions: int


def run(url: str | None, *, as_json: bool) -> bool:
    """Prints one finding after the other, as they are made; says whether nothing is bad.

    Args:
        url: of the broker; None is the default.
        as_json: each finding as an object in a line.
    """
    good = True
    for finding in _findings(url or broker_url()):
        good &= finding.state is not State.BAD
        click.echo(msgspec.json.encode(finding) if as_json else _line(finding))
    return good


def _line(finding: Finding) -> str:
    line = printable(f"{_MARKS[finding.state]} {finding.check:20}  {finding.text}")
    return f"{line}\n  {'':20}  -> {finding.fix}" if finding.fix else line


def _findings(url: str) -> Iterator[Finding]:
    yield from versions()
    try:
        with connect(url, "doctor") as bus:
            yield from _of_broker(bus, url)
    except BrokerError as error:
        yield Finding("broker", State.BAD, str(error), _START)
    yield from kernel_settings()


def _of_broker(bus: clients.Client, url: str) -> Iterator[Finding]:
    (server, _), *_ = ask(bus, "server", _Server)
    found = way(bus)
    text = f"{server.name!r} {server.version} at {url}, process {server.process}, up {duration_text(server.uptime_s)}"
    yield Finding("broker", State.OK, f"{text}, Python {server.python}, {server.sessions} sessions")
    if not server.compiled_modules:
        fix = "build the modules where the broker runs: python setup.py build_ext --inplace"
        yield Finding(
            "broker's modules", State.WARNING, "none is compiled: each message costs several times as much", fix
        )
    yield path_finding(found, server.shared_memory, server.listeners)
    yield from address_findings(bus, found, server.listeners, url)
    yield from session_findings(bus)
    yield from group_findings(bus)
    yield collectives_finding(found)
    yield from device_findings()
    yield copies_finding(found)
    yield Finding(
        "limits",
        State.INFO,
        f"a peer that is silent for {found.heartbeat_timeout_s:g} s is given up; of a topic "
        f"{found.publish_window_bytes >> 10} KiB may be sent ahead of the broker's credit",
        "",
        {"heartbeat_timeout_s": found.heartbeat_timeout_s, "publish_window_bytes": found.publish_window_bytes},
    )
    yield from _measured(bus, found)


def path_finding(found: Way, broker_shares: bool, listeners: list[str]) -> Finding:
    """Which way a client takes, and why not a better one."""
    if found.scheme == "inproc" or found.shared_memory:
        words = "this process" if found.scheme == "inproc" else f"{found.scheme}, and shared memory for large messages"
        return Finding("path", State.OK, words)
    if found.scheme == "tls":
        return Finding("path", State.OK, "tls, encrypted; with a broker on this host unix:// costs less")
    if not found.same_host:
        return Finding("path", State.OK, f"{found.scheme} to {found.peer}: the broker is on another host")
    if not broker_shares:
        words = f"{found.scheme} without shared memory: the broker does not share any"
        return Finding("path", State.WARNING, words, "start the broker with --shared-memory true")
    if found.scheme != "unix":
        words = f"{found.scheme} on one host, without shared memory: "
        if not any(listener.startswith("unix:") for listener in listeners):
            return Finding("path", State.WARNING, words + "the broker has no Unix-domain socket", _LISTEN)
        return Finding(
            "path",
            State.WARNING,
            words + "the broker's Unix-domain socket cannot be reached from here: another container or another user's",
            "connect to it by its path: " + next(each for each in listeners if each.startswith("unix:")),
        )
    words = "unix without shared memory: this system cannot pass or seal it"
    return Finding("path", State.WARNING, words, "look for shared memory in the log of the broker (--log-level info)")


def collectives_finding(found: Way) -> Finding:
    """By which schedule ranks here reduce."""
    if found.scheme == "inproc":
        return Finding("collectives", State.INFO, "through the broker (star)")
    if found.scheme == "tls":
        words = "through the broker (star); links are in the clear, and made only where a schedule asks for them"
        return Finding("collectives", State.INFO, words)
    if not found.same_host:
        words = (
            "over links where all ranks reach one another (ring, halving, hierarchical), else through the broker (star)"
        )
        return Finding("collectives", State.INFO, words)
    if not shm.AVAILABLE:
        fix = "python setup.py build_ext --inplace"
        return Finding("collectives", State.WARNING, "through the broker (star): the engine is not compiled here", fix)
    if not found.shared_memory:
        words = "over links, or through the broker (star): there is no shared memory (see path)"
        return Finding("collectives", State.WARNING, words)
    return Finding("collectives", State.OK, "in shared memory (shm), if all ranks of a group are on this host")


def copies_finding(found: Way) -> Finding:
    """How often a large message is copied on its way."""
    if found.shared_memory:
        words = "1 of a large message (0 if it is made with bus.empty); readers map it"
        return Finding("copies", State.OK, words, "", {"copies": 1})
    words = "4 of a large message: into and out of the kernel, on the way to the broker and on the way to a reader"
    return Finding("copies", State.INFO, words, "", {"copies": 4})


def _measured(bus: clients.Client, found: Way) -> Iterator[Finding]:
    pings = ping(bus)
    text = f"{duration_text(pings.p50_s)} median, {duration_text(pings.p99_s)} p99 of {pings.count}"
    values = {"p50_s": pings.p50_s, "p99_s": pings.p99_s, "count": pings.count}
    yield Finding("round trip", State.INFO, text, "", values)
    offset_s, error_s = clock_offset(bus)
    far = abs(offset_s) - error_s > CLOCK_OFFSET_S_MAX
    side = "ahead of" if offset_s > 0 else "behind"
    yield Finding(
        "clock",
        State.WARNING if far else State.OK,
        f"the broker's is {duration_text(abs(offset_s))} {side} this one, give or take {duration_text(error_s)}",
        "synchronise both hosts: sudo timedatectl set-ntp true" if far else "",
        {"offset_s": offset_s, "error_s": error_s},
    )
    yield from _bandwidths(lambda: bandwidth(bus), shared=found.shared_memory)
    yield link_finding(found, pings.p50_s)


def _bandwidths(through_broker: Callable[[], float], *, shared: bool) -> Iterator[Finding]:
    copied, looped, reached = copy_bandwidth(), loopback_bandwidth(), through_broker()
    limit, what = (copied, "a copy in memory") if shared else (looped / 2, "half of loopback, there and back")
    yield Finding(
        "bandwidth",
        State.INFO,
        f"{_rate(reached)} of arrays of 8 MiB to the broker and back, one at a time: {reached / limit:.0%} of {what}",
        "",
        {"bytes_per_s": reached, "share_of_limit": reached / limit},
    )
    yield Finding(
        "this machine",
        State.INFO,
        f"{_rate(copied)} copy in memory, {_rate(looped)} TCP loopback",
        "",
        {"copy_bytes_per_s": copied, "loopback_bytes_per_s": looped},
    )


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.2f} GB/s"
