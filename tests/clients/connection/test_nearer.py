"""Clients that dial a broker of their own host over TCP, and reach it at its Unix-domain socket."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.protocol.bodies import Refusal, Welcome
from broker.protocol.codes import Code
from broker.protocol.handshake import decode_greeting, encode_greeting
from broker.state.records import SessionRecord
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ServingThread]:
    with ServingThread("tcp://127.0.0.1:0", f"unix://{tmp_path}/broker.sock") as serving:
        yield serving


def sessions(broker: ServingThread) -> list[SessionRecord]:
    return list(broker.server.state.sessions.values())


def peers(broker: ServingThread) -> list[str]:
    return [record.peer for record in sessions(broker)]


def test_a_client_of_this_host_goes_to_the_unix_socket_and_shares_memory(broker: ServingThread) -> None:
    with clients.connect(broker.url) as bus, bus.subscribe("a") as subscription:
        bus.publish("a", np.arange(100_000))
        assert np.array_equal(subscription.next(PATIENCE_S).value, np.arange(100_000))
        assert [peer.partition(":")[0] for peer in broker.call(peers, broker)] == ["unix"]
        assert broker.call(lambda: [record.shares is not None for record in sessions(broker)]) == [True]


def test_who_wants_no_shared_memory_stays_where_it_dialled(broker: ServingThread) -> None:
    with clients.connect(broker.url, shared_memory=False):
        assert [peer.partition(":")[0] for peer in broker.call(peers, broker)] == ["tcp"]


def test_only_sessions_that_open_are_told_of(broker: ServingThread) -> None:
    with clients.connect(broker.url, shared_memory=False) as watcher, watcher.subscribe("$sys/sessions") as events:
        with clients.connect(broker.url, name="near"):
            assert events.next(PATIENCE_S).value["event"] == "opened"
        closed = events.next(PATIENCE_S).value
        assert (closed["event"], closed["name"]) == ("closed", "near")
        assert events.pending == 0


def test_who_is_sent_to_the_nearer_address_is_no_stranger_in_the_log(
    broker: ServingThread, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.DEBUG, "broker"), clients.connect(broker.url, name="near"):
        broker.call(lambda: None)
    (moved,) = [record for record in caplog.records if record.getMessage().startswith("session.moved")]
    assert moved.levelno == logging.DEBUG
    assert f"unix://{tmp_path}/broker.sock" in moved.getMessage()
    told = [record.getMessage() for record in caplog.records if record.name.startswith("broker.")]
    assert not [words for words in told if "stranger" in words]


def test_a_socket_that_cannot_be_reached_leaves_the_client_on_tcp(broker: ServingThread, tmp_path: Path) -> None:
    os.unlink(tmp_path / "broker.sock")
    with clients.connect(broker.url) as bus:
        assert bus.publish("a", b"there", ack="accepted") == 1
        assert [peer.partition(":")[0] for peer in broker.call(peers, broker)] == ["tcp"]


def test_another_broker_at_the_named_socket_is_not_taken_for_the_first(tmp_path: Path) -> None:
    with (
        ServingThread("tcp://127.0.0.1:0", f"unix://{tmp_path}/first.sock") as first,
        ServingThread(f"unix://{tmp_path}/second.sock") as second,
    ):
        first.call(setattr, first.server.state, "local_path", f"{tmp_path}/second.sock")
        with clients.connect(first.url) as bus:
            assert bus.publish("a", b"here", ack="accepted") == 1
            assert [peer.partition(":")[0] for peer in first.call(peers, first)] == ["tcp"]
            assert first.call(lambda: "a" in first.server.state.router.topics)
            assert not second.call(lambda: "a" in second.server.state.router.topics)


def test_a_refusal_without_a_path_is_an_error_with_its_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            for _ in range(2):
                peer, _ = listener.accept()
                with peer:
                    hello = decode_greeting(memoryview(peer.recv(65536)))
                    assert hello is not None
                    assert not isinstance(hello[0], Refusal | Welcome)
                    words = "go away" if not hello[0].local else "nearer"
                    peer.sendall(encode_greeting(Refusal(Code.MOVED if hello[0].local else Code.LIMIT, words)))

        answering = threading.Thread(target=refuse)
        answering.start()
        with pytest.raises(clients.ConnectError, match="go away"):
            clients.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_s=5.0)
        answering.join(PATIENCE_S)
        assert not answering.is_alive()
