"""Changes of keys over tls, made by hand: what one read deals with, and what of it waits."""

from __future__ import annotations

import hmac
import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from broker.errors import ConnectionClosed
from broker.limits import KIB, TLS_ANSWERS_BYTES_MAX
from broker.transport import Connection, Listener, listen
from broker.transport.tls.connection import TlsConnection
from broker.transport.tls.contexts import dialler_context
from broker.transport.tls.silence import Silence

from .driving import accept, is_ready, send_all, wait_readable


@pytest.fixture
def listener(certificates: Path) -> Iterator[Listener]:
    with listen(f"tls://127.0.0.1:0?certificates={certificates / 'broker'}") as listening:
        yield listening


CHANGE_KEYS = b"\x18\x00\x00\x01\x01"
"""KeyUpdate, update_requested (RFC 8446, section 4.6.3)."""


def derive(secret: bytes, label: str, length: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446, section 7.1) with SHA-384, without a context, of one block at most."""
    named = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes((len(named),)) + named + b"\0"
    return hmac.digest(secret, info + b"\1", "sha384")[:length]


class Sender:
    """Makes the records of one end by hand."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._number = 0

    def record(self, content: bytes, kind: bytes = b"\x17") -> bytes:
        """One record of data, or of another kind."""
        aead = pytest.importorskip("cryptography.hazmat.primitives.ciphers.aead", reason="records are made with it")
        header = b"\x17\x03\x03" + (len(content) + 1 + 16).to_bytes(2, "big")
        key, nonce = derive(self._secret, "key", 32), derive(self._secret, "iv", 12)
        nonce = (int.from_bytes(nonce, "big") ^ self._number).to_bytes(12, "big")
        self._number += 1
        return header + bytes(aead.AESGCM(key).encrypt(nonce, content + kind, header))

    def key_changes(self, count: int) -> bytes:
        """Records that change the sender's keys, and ask for the same, in turn."""
        records = []
        for _ in range(count):
            records.append(self.record(CHANGE_KEYS, b"\x16"))
            self._secret, self._number = derive(self._secret, "traffic upd", 48), 0
        return b"".join(records)


def shake_hands_by_hand(sock: socket.socket, accepted: Connection, certificates: Path, log: Path) -> Sender:
    """Opens a connection with keys that are known; returns what makes the dialler's records."""
    context = dialler_context(str(certificates / "trainer-0"))
    context.keylog_filename = str(log)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    end = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    room = [memoryview(bytearray(64))]
    while accepted.opening:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
        sock.sendall(outgoing.read())
        wait_readable(accepted)
        accepted.receive_into(room)
        if accepted.opening:
            incoming.write(sock.recv(65536))
    cipher = end.cipher()
    assert cipher is not None
    assert cipher[0] == "TLS_AES_256_GCM_SHA384"
    line = next(line for line in log.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_SECRET_0"))
    return Sender(bytes.fromhex(line.split()[2]))


def test_who_does_nothing_but_change_keys_is_cut_off_after_a_few_at_a_time(
    listener: Listener, certificates: Path, tmp_path: Path
) -> None:
    with socket.create_connection(("127.0.0.1", listener.address.port)) as sock, accept(listener) as accepted:
        sender = shake_hands_by_hand(sock, accepted, certificates, tmp_path / "log")
        few = sender.key_changes(2000)
        sock.sendall(few)
        room = [memoryview(bytearray(256 * KIB))]
        wait_readable(accepted)
        assert accepted.receive_into(room) == 0
        cause = ""
        while not cause and is_ready(accepted.fileno(), select.POLLIN, 0.1):
            try:
                assert accepted.receive_into(room) == 0
            except ConnectionClosed as error:
                cause = error.reason
        assert "bytes of TLS that say nothing, as changes of keys" in cause


def test_who_changes_keys_now_and_then_is_served(listener: Listener, certificates: Path, tmp_path: Path) -> None:
    with socket.create_connection(("127.0.0.1", listener.address.port)) as sock, accept(listener) as accepted:
        sender = shake_hands_by_hand(sock, accepted, certificates, tmp_path / "log")
        sock.sendall(sender.key_changes(10))
        room = [memoryview(bytearray(64))]
        wait_readable(accepted)
        assert accepted.receive_into(room) == 0
        send_all(accepted, [b"still there"])
        assert sock.recv(65536)


class CountedBytes:
    """What OpenSSL reads from, and how much it was given at a time."""

    def __init__(self, connection: TlsConnection) -> None:
        self._incoming = connection._incoming
        self.given: list[int] = []
        connection._incoming = self  # type: ignore[assignment]

    @property
    def pending(self) -> int:
        return self._incoming.pending

    def write(self, data: bytes) -> int:
        self.given.append(len(data))
        return self._incoming.write(data)

    def read(self) -> bytes:
        return self._incoming.read()


def test_who_was_let_in_cannot_have_many_changes_of_keys_dealt_with_in_one_read_nor_ever_more_of_them(
    listener: Listener, certificates: Path, tmp_path: Path
) -> None:
    with socket.create_connection(("127.0.0.1", listener.address.port)) as sock, accept(listener) as accepted:
        sender = shake_hands_by_hand(sock, accepted, certificates, tmp_path / "log")
        assert isinstance(accepted, TlsConnection)
        room = bytearray(256 * KIB)
        hello = bytes(80 * KIB)
        for start in range(0, len(hello), 16 * KIB):
            sock.sendall(sender.record(hello[start : start + 16 * KIB]))
        heard = 0
        while heard < len(hello):
            wait_readable(accepted)
            heard += accepted.receive_into([memoryview(room)])
        # As much as is read at once of who has said so much, a word of data in each of its parts.
        flood = b"".join(sender.record(bytes(500)) + sender.key_changes(600) for _ in range(6))
        assert 90 * KIB < len(flood) < 112 * KIB
        sock.sendall(flood)
        counted = CountedBytes(accepted)
        cause = ""
        while not cause:
            wait_readable(accepted)
            before = len(counted.given)
            try:
                accepted.receive_into([memoryview(room)])
            except ConnectionClosed as error:
                cause = error.reason
            assert len(counted.given) - before <= 1
        assert max(counted.given) <= 33 * KIB
        assert "bytes of TLS that say nothing, as changes of keys" in cause


def test_who_does_not_read_the_answers_to_its_changes_of_keys_is_cut_off(
    listener: Listener, certificates: Path, tmp_path: Path
) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
        sock.connect(("127.0.0.1", listener.address.port))
        with accept(listener) as accepted:
            assert isinstance(accepted, TlsConnection)
            sender = shake_hands_by_hand(sock, accepted, certificates, tmp_path / "log")
            accepted._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            room, most, cause = [memoryview(bytearray(64 * KIB))], 0, ""
            while not cause:
                sock.sendall(sender.key_changes(100))
                # As if it took its time, so that it cannot be said to say nothing.
                accepted._silence = Silence()
                try:
                    while is_ready(accepted.fileno(), select.POLLIN, 0.1):
                        accepted.receive_into(room)
                        most = max(most, accepted._outgoing.pending)
                except ConnectionClosed as error:
                    cause = error.reason
                assert most < TLS_ANSWERS_BYTES_MAX + 64 * KIB
            assert "does not read what TLS answers it" in cause
