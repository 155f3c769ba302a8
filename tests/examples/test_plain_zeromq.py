"""The example that speaks the protocol with pyzmq and msgpack alone."""

from __future__ import annotations

from pathlib import Path

import clients
from examples import __file__ as examples
from tests.daemon import Daemon, Process

LINES_MAX = 39


def test_a_plain_pyzmq_program_publishes_and_subscribes() -> None:
    with (
        Daemon(listen=["zmq+tcp://127.0.0.1:0"], admin="off") as daemon,
        clients.connect(daemon.url) as bus,
        bus.subscribe("greetings") as greetings,
        Process(daemon.url, module="examples.plain_zeromq") as plain,
    ):
        assert "'type': 'welcome'" in plain.read_line()
        assert plain.read_line() == "1 hello"
        assert greetings.next(20.0).value == "hello"
        bus.publish("greetings", {"to": "you"})
        assert plain.read_line() == "2 {'to': 'you'}"


def test_it_is_short_enough_to_be_read() -> None:
    source = Path(examples).with_name("plain_zeromq.py").read_text()
    assert len([line for line in source.splitlines() if line.strip()]) <= LINES_MAX
