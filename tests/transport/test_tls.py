"""What is particular to tls."""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.errors import ConnectError, ConnectionClosed, InvalidValue, ListenError
from broker.limits import KIB, MIB, TLS_EARLY_BYTES_MAX
from broker.transport import Connection, Listener, listen, parse
from broker.transport.tls import contexts, transport
from broker.transport.tls.contexts import DENIED, dialler_context

from .driving import (
    PATIENCE_S,
    accept,
    connect,
    exchange,
    is_ready,
    open_both,
    receive_exactly,
    receive_until_closed,
    send_all,
    wait_readable,
)


def at(certificates: Path, name: str = "broker", port: int = 0, host: str = "127.0.0.1") -> str:
    return f"tls://{host}:{port}?certificates={certificates / name}"


@pytest.fixture
def listener(certificates: Path) -> Iterator[Listener]:
    with listen(at(certificates)) as listening:
        yield listening


def dial(listener: Listener, certificates: Path, name: str = "trainer-0", host: str = "127.0.0.1") -> Connection:
    return connect(at(certificates, name, listener.address.port, host), PATIENCE_S)


def fail_to_open(dialled: Connection, accepted: Connection) -> tuple[str, ConnectionClosed, str]:
    """Drives both ends until the dialler has learnt that it is not let in; returns what each has learnt."""
    room, told = [memoryview(bytearray(64))], ""
    while True:
        for end in (accepted, dialled):
            if end.closed or not is_ready(end.fileno(), select.POLLIN, 0.01):
                continue
            try:
                end.receive_into(room)
            except ConnectionClosed as error:
                if end is dialled:
                    return told, error, error.reason
                told = error.reason
                accepted.close()


def test_a_peer_is_known_by_its_certificate_once_the_connection_is_open(listener: Listener, certificates: Path) -> None:
    with dial(listener, certificates) as dialled, accept(listener) as accepted:
        assert accepted.opening
        assert accepted.peer_certificate is None
        open_both(dialled, accepted)
        found = accepted.peer_certificate
        assert found is not None
        assert (found.name, found.units, found.organization) == ("trainer-0", ("trainer",), "")
        assert dialled.peer_certificate is not None
        assert dialled.peer_certificate.name == "broker"


def test_a_peer_without_a_certificate_is_let_in_by_the_transport(listener: Listener, tmp_path: Path) -> None:
    folder = tmp_path / "anybody"
    folder.mkdir()
    authority = Path(dict(listener.address.options)["certificates"]) / "ca.crt"
    (folder / "ca.crt").write_bytes(authority.read_bytes())
    address = f"tls://127.0.0.1:{listener.address.port}?certificates={folder}"
    with connect(address, PATIENCE_S) as dialled, accept(listener) as accepted:
        open_both(dialled, accepted)
        assert accepted.peer_certificate is None
        send_all(dialled, [b"hello"])
        assert receive_exactly(accepted, 5) == b"hello"


def test_what_is_sent_before_the_handshake_is_over_arrives_after_it_and_is_bounded(
    listener: Listener, certificates: Path
) -> None:
    early = os.urandom(TLS_EARLY_BYTES_MAX)
    with dial(listener, certificates) as dialled:
        assert dialled.send([early[:1000], early[1000:], b"too much"]) == len(early)
        assert dialled.send([b"too much"]) == 0
        with accept(listener) as accepted:
            assert receive_exactly(accepted, len(early)) == early
            send_all(dialled, [b"later"])
            assert receive_exactly(accepted, 5) == b"later"


def test_records_that_found_no_room_keep_the_connection_readable(listener: Listener, certificates: Path) -> None:
    payload = os.urandom(40 * KIB)
    with dial(listener, certificates) as dialled, accept(listener) as accepted:
        open_both(dialled, accepted)
        send_all(dialled, [payload])
        received = bytearray()
        while len(received) < len(payload):
            assert is_ready(accepted.fileno(), select.POLLIN, PATIENCE_S)
            room = bytearray(7001)
            received += room[: accepted.receive_into([memoryview(room)])]
        assert received == payload
        assert accepted.receive_into([memoryview(bytearray(1))]) == 0
        assert not is_ready(accepted.fileno(), select.POLLIN)


def test_both_ends_send_more_than_the_link_holds_and_read_while_they_cannot_write(
    listener: Listener, certificates: Path
) -> None:
    there, back = os.urandom(12 * MIB), os.urandom(12 * MIB)
    with dial(listener, certificates) as dialled, accept(listener) as accepted:
        open_both(dialled, accepted)
        left = {dialled: memoryview(there), accepted: memoryview(back)}
        rooms = {dialled: memoryview(bytearray(len(back))), accepted: memoryview(bytearray(len(there)))}
        got = dict(rooms)
        for end in left:
            left[end] = left[end][end.send([left[end]]) :]
            assert left[end], "the link holds all of it: the test shows nothing"
        while any(rooms.values()):
            assert any(is_ready(end.fileno(), select.POLLIN, PATIENCE_S) for end in (accepted, dialled) if rooms[end])
            for end in (dialled, accepted):
                rooms[end] = rooms[end][end.receive_into([rooms[end]]) :]
                left[end] = left[end][end.send([left[end]]) :]
        assert (got[accepted], got[dialled]) == (there, back)


def test_after_half_a_close_the_other_direction_goes_on(listener: Listener, certificates: Path) -> None:
    with dial(listener, certificates) as dialled, accept(listener) as accepted:
        open_both(dialled, accepted)
        send_all(accepted, [b"under way"])
        send_all(dialled, [b"last words"])
        dialled.end_sending()
        assert receive_exactly(accepted, 10) == b"last words"
        wait_readable(accepted)
        with pytest.raises(ConnectionClosed, match="the peer closed the connection"):
            accepted.receive_into([memoryview(bytearray(1))])
        payload = os.urandom(3 * MIB)
        received = bytearray(len(payload))
        assert receive_exactly(dialled, 9) == b"under way"
        exchange(accepted, dialled, payload, memoryview(received))
        assert received == payload
        with pytest.raises(ConnectionClosed, match="sending was ended"):
            dialled.send([b"more"])


def test_an_end_that_is_cut_off_is_told_from_one_that_was_meant(listener: Listener, certificates: Path) -> None:
    with dial(listener, certificates) as dialled, accept(listener) as accepted:
        open_both(dialled, accepted)
        send_all(dialled, [b"half of it"])
        with socket.socket(fileno=os.dup(dialled._socket.fileno())) as behind:
            behind.shutdown(socket.SHUT_WR)
        received, error = receive_until_closed(accepted)
        assert received == b"half of it"
        assert "without a word" in error.reason


def test_bytes_that_were_changed_on_the_way_end_the_connection(listener: Listener, certificates: Path) -> None:
    with dial(listener, certificates) as dialled, accept(listener) as accepted:
        open_both(dialled, accepted)
        with socket.socket(fileno=os.dup(dialled._socket.fileno())) as behind:
            behind.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        received, error = receive_until_closed(accepted)
        assert received == b""
        assert "TLS failed" in error.reason


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
def test_nothing_older_than_tls_1_3_is_spoken(listener: Listener, certificates: Path, version: ssl.TLSVersion) -> None:
    context = dialler_context(str(certificates / "trainer-0"))
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", listener.address.port), PATIENCE_S) as sock:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        sock.sendall(outgoing.read())
        with accept(listener) as accepted:
            _, error = receive_until_closed(accepted)
        assert "TLS 1.3, the only version" in error.reason
        incoming.write(sock.recv(4096))
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            client.do_handshake()


def test_a_session_is_never_resumed_so_that_each_shows_its_certificate(listener: Listener, certificates: Path) -> None:
    with dial(listener, certificates) as dialled, accept(listener) as accepted:
        open_both(dialled, accepted)
        send_all(accepted, [b"x"])
        receive_exactly(dialled, 1)
        session = dialled._ssl.session
        assert session is None or not session.has_ticket


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "does not speak TLS"),
        (b"\x93TBUS\r\n\x1a" + bytes(64), "does not speak TLS"),
        (bytes(64), "TLS"),
    ],
)
def test_what_does_not_speak_tls_is_told_from_a_fault(listener: Listener, first: bytes, told: str) -> None:
    with socket.create_connection(("127.0.0.1", listener.address.port), PATIENCE_S) as sock:
        sock.sendall(first)
        with accept(listener) as accepted:
            _, error = receive_until_closed(accepted)
        assert told in error.reason


def test_a_listener_that_does_not_speak_tls_is_named(certificates: Path) -> None:
    with listen("tcp://127.0.0.1:0") as plain:
        dialled = connect(at(certificates, "trainer-0", plain.address.port), PATIENCE_S)
        with dialled, accept(plain) as accepted:
            wait_readable(accepted)
            accepted.send([b"This is a tensorbus broker.\r\n"])
            _, error = receive_until_closed(dialled)
        assert "is it a tcp:// address?" in error.reason


@pytest.mark.usefixtures("certificates")
def test_a_certificate_for_another_host_is_not_accepted(tmp_path: Path) -> None:
    from broker.security.certificate_authority import BROKER, CertificateAuthority

    authority = CertificateAuthority.create(tmp_path)
    authority.issue(BROKER, hosts=("broker.example", "localhost"))
    authority.issue("trainer-0")
    with listen(at(tmp_path)) as listener:
        with dial(listener, tmp_path) as dialled, accept(listener) as accepted:
            told, error, reason = fail_to_open(dialled, accepted)
            assert "127.0.0.1" in reason
            assert "--host" in reason
            assert error.code != DENIED
        with dial(listener, tmp_path, host="localhost") as dialled, accept(listener) as accepted:
            open_both(dialled, accepted)


def test_certificates_that_do_not_count_are_refused_with_words_for_each(certificates: Path, tmp_path: Path) -> None:
    from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority

    own, foreign = CertificateAuthority.create(tmp_path / "own"), CertificateAuthority.create(tmp_path / "foreign")
    own.issue(BROKER, hosts=LOCAL_HOSTS)
    own.issue("good")
    own.issue("expired", days=-1)
    own.issue("revoked")
    own.revoke("revoked")
    foreign.issue("stranger")
    # Who trusts the broker, with a certificate that it does not know.
    (tmp_path / "foreign/stranger/ca.crt").write_bytes((tmp_path / "own/ca.crt").read_bytes())
    with listen(at(tmp_path / "own")) as listener:
        for folder, name, at_broker, at_client in (
            ("own", "expired", "certificate has expired", "has expired"),
            ("own", "revoked", "certificate revoked", "was revoked"),
            ("foreign", "stranger", "unable to get local issuer", "another authority has signed it"),
        ):
            with dial(listener, tmp_path / folder, name) as dialled, accept(listener) as accepted:
                told, error, reason = fail_to_open(dialled, accepted)
                assert at_broker in told
                assert at_client in reason
                assert "tensorbus certs issue" in reason
                assert error.code == DENIED
        with dial(listener, tmp_path / "own", "good") as dialled, accept(listener) as accepted:
            open_both(dialled, accepted)


def test_a_rank_cannot_pass_for_a_broker(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever tries would not ask whether their certificate is fit for it.
    monkeypatch.setattr(contexts, "check_purpose", lambda *arguments: None)
    with (
        listen(at(certificates, "trainer-0")) as listener,
        dial(listener, certificates, "broker") as dialled,
        accept(listener) as accepted,
    ):
        _, _, reason = fail_to_open(dialled, accepted)
        assert "is not accepted" in reason


def test_handshakes_that_nobody_goes_on_with_are_bounded_and_the_oldest_goes(
    listener: Listener, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "TLS_OPENING_MAX", 3)
    silent = [socket.create_connection(("127.0.0.1", listener.address.port), PATIENCE_S) for _ in range(4)]
    waiting = [accept(listener) for _ in silent]
    wait_readable(waiting[0])
    with pytest.raises(ConnectionClosed, match="more than 3 connections were being opened"):
        waiting[0].receive_into([memoryview(bytearray(1))])
    for end in waiting[1:]:
        assert end.receive_into([memoryview(bytearray(1))]) == 0
    waiting[1].close()
    with dial(listener, certificates) as dialled, accept(listener) as accepted:
        open_both(dialled, accepted)
        assert len(listener._opening) == 2
        for end in (*waiting, *silent):
            end.close()


@pytest.mark.usefixtures("certificates")
def test_new_certificates_count_for_new_connections_and_the_old_ones_live_on(tmp_path: Path) -> None:
    from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority

    authority = CertificateAuthority.create(tmp_path)
    authority.issue(BROKER, hosts=LOCAL_HOSTS)
    authority.issue("trainer-0")
    with (
        listen(at(tmp_path)) as listener,
        dial(listener, tmp_path) as before,
        accept(listener) as accepted_before,
    ):
        open_both(before, accepted_before)
        old = before.peer_certificate
        authority.issue(BROKER, hosts=LOCAL_HOSTS)
        listener.reload()
        with dial(listener, tmp_path) as after, accept(listener) as accepted_after:
            open_both(after, accepted_after)
            assert after.peer_certificate is not None
            assert old is not None
            assert after.peer_certificate.serial != old.serial
            send_all(before, [b"still here"])
            assert receive_exactly(accepted_before, 10) == b"still here"


@pytest.mark.usefixtures("certificates")
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tls.crt", b"nonsense", "tls.crt with tls.key cannot be used"),
        ("tls.key", b"", "tls.crt with tls.key cannot be used"),
        ("ca.crt", b"nonsense", "ca.crt cannot be used"),
        ("ca.crl", b"nonsense", "ca.crl cannot be used"),
        ("tls.key", None, "tls.key is missing there"),
        ("ca.crl", None, "ca.crl is gone"),
    ],
)
def test_certificates_that_cannot_be_used_leave_the_old_ones_in_place(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority

    authority = CertificateAuthority.create(tmp_path)
    authority.issue(BROKER, hosts=LOCAL_HOSTS)
    authority.issue("trainer-0")
    with listen(at(tmp_path)) as listener:
        file = tmp_path / "broker" / name
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(InvalidValue, match=told):
            listener.reload()
        with dial(listener, tmp_path) as dialled, accept(listener) as accepted:
            open_both(dialled, accepted)


def test_a_key_of_another_certificate_is_named(certificates: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, source in (("ca.crt", "broker"), ("tls.crt", "broker"), ("tls.key", "trainer-0")):
        (folder / name).write_bytes((certificates / source / name).read_bytes())
    with pytest.raises(ListenError, match="tls.key is not the key of tls.crt"):
        listen(f"tls://127.0.0.1:0?certificates={folder}")
    with pytest.raises(ConnectError, match="tls.key is not the key of tls.crt"):
        connect(f"tls://127.0.0.1:9?certificates={folder}", PATIENCE_S)


def test_to_listen_needs_certificates(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="tensorbus certs init"):
        listen("tls://127.0.0.1:0")
    with pytest.raises(ListenError, match="ca.crt and tls.crt and tls.key is missing"):
        listen(f"tls://127.0.0.1:0?certificates={tmp_path}")


def test_the_options_of_its_addresses_are_checked() -> None:
    assert parse("tls://h:1?certificates=/a").options == (("certificates", "/a"),)
    with pytest.raises(InvalidValue, match="absolute path"):
        parse("tls://h:1?certificates=a")
    with pytest.raises(InvalidValue, match="known ones are certificates"):
        parse("tls://h:1?curve=/a")
