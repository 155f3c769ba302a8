"""Where a server may listen, whom it lets in as whom, and what happens when certificates and tokens change."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import clients
from broker.collectives import ring
from broker.errors import InvalidValue
from broker.security.identity import ANYBODY, Identity
from broker.security.tokens import add_token, new_token, revoke_token
from broker.server_admission import is_local
from broker.transport.addresses import parse
from tests.clients.serving import ServingThread
from tests.daemon import PATIENCE_S, Daemon, run

BEYOND = "0.0.0.0:0"
"""Not loopback, and nothing of it leaves this host: the tests dial 127.0.0.1."""


def identity(serving: ServingThread, name: str) -> Identity:
    def find() -> Identity:
        return next(record.identity for record in serving.server.state.sessions.values() if record.name == name)

    return serving.call(find)  # type: ignore[return-value]


def token_in(file: Path, name: str, *, expires: datetime | None = None) -> tuple[str, str]:
    """A token that the file knows; returns it and its number."""
    text, token = new_token(name, [name.partition("-")[0]], "", datetime.now(UTC), expires)
    add_token(file, token)
    return text, token.id


def dialled(serving: ServingThread, host: str = "127.0.0.1") -> str:
    address = serving.server.listeners[0].address
    return f"{address.scheme}://{host}:{address.port}"


def secure(certificates: Path, **settings: object) -> ServingThread:
    return ServingThread(f"tls://{BEYOND}", certificates=str(certificates / "broker"), **settings)


# Where to listen.


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://[::]:0", "zmq+tcp://0.0.0.0:0"])
def test_beyond_loopback_nobody_listens_to_strangers(address: str) -> None:
    status, output, errors = run("serve", "--listen", address, "--admin", "off")
    assert (status, output) == (1, "")
    assert "strangers could get in there" in errors
    assert all(advice in errors for advice in ("tensorbus certs init", "--tokens FILE", "--insecure"))


def test_ucx_beyond_loopback_wants_a_word_of_its_own(tmp_path: Path) -> None:
    for more in ((), ("--insecure",)):
        status, output, errors = run("serve", "--listen", "ucx://0.0.0.0:0", "--admin", "off", *more)
        assert (status, output) == (1, "")
        assert "--insecure-fabric" in errors
    # With it, identity is asked for as anywhere else.
    status, _, errors = run("serve", "--listen", "ucx://0.0.0.0:0", "--admin", "off", "--insecure-fabric")
    assert status == 1
    assert "strangers could get in there" in errors


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.3.2.1:1", True),
        ("tcp://localhost:1", True),
        ("tls://[::1]:1", True),
        ("zmq+tcp://127.0.0.1:1", True),
        ("unix:///a", True),
        ("zmq+ipc:///a", True),
        ("inproc://a", True),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tls://10.0.0.1:1", False),
        ("zmq+tcp://192.168.0.1:1", False),
        ("ucx://10.0.0.1:1", False),
    ],
)
def test_only_loopback_and_sockets_of_this_host_are_local(address: str, local: bool) -> None:
    assert is_local(parse(address)) is local


def test_on_loopback_nothing_is_asked_for() -> None:
    with ServingThread("tcp://127.0.0.1:0") as serving, clients.connect(serving.url, name="a"):
        assert identity(serving, "a") is ANYBODY


def test_insecure_lets_anybody_in_and_says_so_at_the_start_and_for_sessions_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), ServingThread(f"tcp://{BEYOND}", insecure=True) as serving:
        url = dialled(serving)
        for number in range(3):
            clients.connect(url, name=f"client-{number}", shared_memory=False).close()
    told = [record.getMessage() for record in caplog.records]
    assert [text.split()[0] for text in told] == ["listener.insecure", "session.insecure"]
    assert "--insecure" in told[0]
    assert "client-0" in told[1]


def test_the_flag_needs_no_value(tmp_path: Path) -> None:
    with Daemon("--insecure", listen=("tcp://0.0.0.0:0",), admin="off") as daemon:
        assert "listener.insecure" in daemon.errors


def test_tokens_in_the_clear_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token, _ = token_in(tmp_path / "tokens", "trainer-0")
    with (
        caplog.at_level(logging.WARNING),
        ServingThread(f"tcp://{BEYOND}", tokens=str(tmp_path / "tokens")) as serving,
        clients.connect(dialled(serving), name="a", token=token, shared_memory=False),
    ):
        assert identity(serving, "trainer-0/a").name == "trainer-0"
    assert "listen at tls:// instead" in caplog.text


# Who comes.


def test_a_certificate_says_who_somebody_is(certificates: Path) -> None:
    with secure(certificates) as serving, clients.connect(dialled(serving), name="a", tls=certificates / "trainer-0"):
        found = identity(serving, "trainer-0/a")
        assert (found.name, found.roles, found.proof) == ("trainer-0", ("trainer",), "certificate")
        assert int(found.credential, 16)


def test_without_a_certificate_or_a_token_nobody_gets_in(certificates: Path, tmp_path: Path) -> None:
    anybody = authority_of(certificates, tmp_path)
    token, _ = token_in(tmp_path / "tokens", "monitor-0")
    with secure(certificates, tokens=str(tmp_path / "tokens")) as serving:
        with pytest.raises(clients.PermissionDenied, match=r"show a certificate .* or a token"):
            clients.connect(dialled(serving), tls=anybody)
        with clients.connect(dialled(serving), name="a", tls=anybody, token=token):
            assert identity(serving, "monitor-0/a").proof == "token"
        with clients.connect(dialled(serving), name="b", tls=certificates / "trainer-0", token=token):
            assert identity(serving, "monitor-0/b").proof == "token"


@pytest.mark.parametrize("proof", ["certificate", "token"])
@pytest.mark.parametrize(
    ("said", "called"),
    [
        ("trainer-1", "trainer-0/trainer-1"),
        ("trainer-0", "trainer-0"),
        ("trainer-0/loader", "trainer-0/loader"),
        ("trainer-01", "trainer-0/trainer-01"),
        ("", "trainer-0"),
    ],
)
def test_nobody_sends_in_a_name_that_they_have_not_proven(
    certificates: Path, tmp_path: Path, proof: str, said: str, called: str
) -> None:
    token, _ = token_in(tmp_path / "tokens", "trainer-0")
    monitor, _ = token_in(tmp_path / "tokens", "monitor-0")
    tls = certificates / "trainer-0" if proof == "certificate" else authority_of(certificates, tmp_path)
    with (
        secure(certificates, tokens=str(tmp_path / "tokens")) as serving,
        clients.connect(dialled(serving), tls=tls, token=monitor) as reader,
        reader.subscribe("gradients/#") as subscription,
        clients.connect(dialled(serving), name=said, tls=tls, token=token if proof == "token" else "") as bus,
    ):
        reader.flush()
        bus.publish("gradients/trainer-0", 1)
        assert subscription.next(PATIENCE_S).sender == called


def authority_of(certificates: Path, folder: Path) -> Path:
    """A folder with the authority and nothing else: of somebody who shows no certificate."""
    (folder / "anybody").mkdir()
    shutil.copy(certificates / "ca.crt", folder / "anybody")
    return folder / "anybody"


def test_a_token_that_is_wrong_expired_or_revoked_is_refused_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    late = token_in(file, "late", expires=datetime.now(UTC) - timedelta(seconds=1))[0]
    revoked, number = token_in(file, "gone")
    revoke_token(file, number)
    with caplog.at_level(logging.WARNING), ServingThread("tcp://127.0.0.1:0", tokens=str(file)) as serving:
        for token, words in ((late, "expired at"), (revoked, "was revoked at"), ("tb_00_wrong", "unknown to")):
            caplog.clear()
            with pytest.raises(clients.PermissionDenied, match=words) as caught:
                clients.connect(serving.url, token=token, shared_memory=False)
            assert "tensorbus tokens create" in str(caught.value)
            serving.wait_until_idle()
            (line,) = [record.getMessage() for record in caplog.records]
            assert line.startswith("server.stranger")
            assert words in line
            assert token not in caplog.text + str(caught.value)


def test_the_kernel_says_who_comes_to_a_unix_socket(tmp_path: Path) -> None:
    with ServingThread(f"unix://{tmp_path}/a") as serving, clients.connect(serving.url, name="a"):
        found = identity(serving, "a")
        assert (found.roles, found.proof) == (("admin",), "unix")
        assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o600


def test_other_users_of_this_host_come_to_a_unix_socket_only_by_configuration() -> None:
    # Not below pytest's folder, which lets nobody else in.
    with (
        tempfile.TemporaryDirectory() as folder,
        ServingThread(f"unix://{folder}/a", users=("4242=monitor",)) as serving,
    ):
        os.chmod(folder, 0o755)
        assert stat.S_IMODE(os.stat(f"{folder}/a").st_mode) == 0o666
        if os.getuid():
            pytest.skip("only root can become another user")
        assert as_user(4242, lambda: connected_as(serving)) == "4242 ('monitor',)"
        assert "user 4243 of this host is not let in" in as_user(4243, lambda: connected_as(serving))


def connected_as(serving: ServingThread) -> str:
    try:
        with clients.connect(serving.url, name="other"):
            found = identity(serving, "4242/other")
            return f"{found.name} {found.roles}"
    except clients.PermissionDenied as error:
        return str(error)


def as_user(number: int, function: Callable[[], str]) -> str:
    """Calls a function while this process's user is another one, as far as the kernel tells others."""
    os.seteuid(number)
    try:
        return function()
    finally:
        os.seteuid(0)


def test_tls_at_a_plain_address_and_the_reverse_are_told_at_both_ends(
    certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), ServingThread("tcp://127.0.0.1:0") as serving:
        with pytest.raises(clients.ConnectError, match=r"is it a tcp:// address\?"):
            clients.connect(serving.url.replace("tcp:", "tls:"), tls=certificates / "trainer-0")
        serving.wait_until_idle()
    assert "this looks like TLS; this port is not encrypted" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO), secure(certificates) as serving:
        with pytest.raises(clients.ConnectError, match="this looks like TLS; connect to it at tls://"):
            clients.connect(dialled(serving).replace("tls:", "tcp:"))
        serving.wait_until_idle()
    assert "the peer does not speak TLS; it should dial tls:// here" in caplog.text


def test_a_handshake_that_nobody_goes_on_with_ends_at_the_time_of_the_hello(certificates: Path) -> None:
    hello_s = 3600.0
    with secure(certificates, hello_timeout_s=hello_s) as serving:
        port = serving.server.listeners[0].address.port
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as silent:
            silent.sendall(b"\x16\x03\x01")
            with clients.connect(dialled(serving), tls=certificates / "trainer-0") as bus:
                assert bus.publish("a/trainer-0", 1, ack="accepted") == 1
                # In time for whom goes on with it, on a busy machine as well.
                serving.call(serving.server.state.arrivals.tick, time.monotonic_ns() + int(2 * hello_s * 1e9))
                assert silent.recv(100) == b""
                assert bus.publish("a/trainer-0", 2, ack="accepted") == 2


def test_ranks_that_come_by_tls_are_linked_only_where_that_is_asked_for(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ring.AVAILABLE:
        pytest.skip("the engine of links is not compiled")
    with secure(certificates) as serving:

        def schedules(**options: object) -> list[str]:
            found: list[str] = []

            def join(rank: int) -> None:
                with clients.connect(dialled(serving), tls=certificates / "trainer-0") as bus:
                    group = bus.group("dp", world_size=2, rank=rank, timeout_s=PATIENCE_S, **options)
                    group.barrier(timeout_s=PATIENCE_S)
                    found.append(group.schedule)

            threads = [threading.Thread(target=join, args=(rank,)) for rank in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(2 * PATIENCE_S)
            return found

        assert schedules() == ["star", "star"]
        assert schedules(schedule="ring") == ["ring", "ring"]
        monkeypatch.setenv("TENSORBUS_LINK_ADDRESS", "127.0.0.1")
        assert schedules() == ["ring", "ring"]


# What changes.


def test_new_tokens_count_after_a_reload_and_revoked_ones_end_their_sessions(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    kept, _ = token_in(file, "kept")
    lost, number = token_in(file, "lost")
    with ServingThread("tcp://127.0.0.1:0", tokens=str(file)) as serving:
        stays = clients.connect(serving.url, name="stays", token=kept, shared_memory=False)
        goes = clients.connect(serving.url, name="goes", token=lost, shared_memory=False, reconnect_timeout_s=30.0)
        later, _ = token_in(file, "later")
        with pytest.raises(clients.PermissionDenied):
            clients.connect(serving.url, token=later, shared_memory=False)
        revoke_token(file, number)
        serving.call(serving.server.reload)
        with pytest.raises(clients.ConnectionClosed, match=r"of 'lost' was revoked"):
            goes.subscribe("never").next(timeout_s=PATIENCE_S)
        clients.connect(serving.url, token=later, shared_memory=False).close()
        stays.flush(PATIENCE_S)
        stays.close()
        goes.close()


def test_a_file_of_tokens_that_cannot_be_read_leaves_the_old_ones_in_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    token, _ = token_in(file, "kept")
    with ServingThread("tcp://127.0.0.1:0", tokens=str(file)) as serving:
        file.write_text("nonsense")
        with caplog.at_level(logging.ERROR):
            serving.call(serving.server.reload)
        assert "credentials.kept" in caplog.text
        clients.connect(serving.url, token=token, shared_memory=False).close()


@pytest.mark.usefixtures("certificates")
def test_a_revoked_certificate_ends_its_sessions_and_lets_nobody_in(tmp_path: Path) -> None:
    from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority

    authority = CertificateAuthority.create(tmp_path)
    authority.issue(BROKER, hosts=LOCAL_HOSTS)
    authority.issue("trainer-0")
    authority.issue("trainer-1")
    with secure(tmp_path, audit=str(tmp_path / "audit")) as serving:
        url = dialled(serving)
        goes = clients.connect(url, name="goes", tls=tmp_path / "trainer-0")
        stays = clients.connect(url, name="stays", tls=tmp_path / "trainer-1")
        authority.revoke("trainer-0")
        serving.call(serving.server.reload)
        with pytest.raises(clients.ConnectionClosed, match="the certificate of 'trainer-0' was revoked"):
            goes.subscribe("never").next(timeout_s=PATIENCE_S)
        with pytest.raises(clients.PermissionDenied, match="was revoked"):
            clients.connect(url, tls=tmp_path / "trainer-0")
        stays.flush(PATIENCE_S)
        stays.close()
        goes.close()
    events = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    (refused,) = [event for event in events if event["event"] == "refused"]
    assert "certificate revoked" in refused["detail"]
    assert sum(event["event"] == "disconnected" for event in events) == 2


def test_files_that_change_are_read_again_by_themselves_once_they_are_at_rest(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token_in(file, "first")
    with ServingThread("tcp://127.0.0.1:0", tokens=str(file)) as serving:
        changed = serving.server.admission.changed
        second_ns = 1_000_000_000

        def look(at_s: int) -> object:
            return serving.call(changed, (1 << 62) + at_s * second_ns)

        assert look(1) is False
        token, _ = token_in(file, "second")
        assert [look(2), look(2), look(3), look(5)] == [False, False, True, True]
        serving.call(serving.server.reload)
        assert look(7) is False
        clients.connect(serving.url, token=token, shared_memory=False).close()


def test_sighup_reads_everything_again(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token_in(file, "first")
    with Daemon("--tokens", str(file), "--audit", str(tmp_path / "audit"), admin="off") as daemon:
        assert daemon.process is not None
        (tmp_path / "audit").rename(tmp_path / "audit.1")
        daemon.process.signal(signal.SIGHUP)
        deadline_s = time.monotonic() + PATIENCE_S
        while "audit log" not in daemon.errors and time.monotonic() < deadline_s:
            time.sleep(0.01)
        with clients.connect(daemon.url, name="a", shared_memory=False) as bus:
            bus.flush()
        daemon.terminate()
        assert "credentials.reloaded" in daemon.errors
    events = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [event["event"] for event in events][-2:] == ["connected", "disconnected"]


# What is recorded.


def test_the_audit_log_tells_who_connected_who_was_refused_and_what_was_reloaded(tmp_path: Path) -> None:
    tokens, audit = tmp_path / "tokens", tmp_path / "audit"
    token, number = token_in(tokens, "trainer-0")
    with ServingThread("tcp://127.0.0.1:0", tokens=str(tokens), audit=str(audit)) as serving:
        clients.connect(serving.url, name="a", token=token, shared_memory=False).close()
        serving.wait_until_idle()
        with pytest.raises(clients.PermissionDenied):
            clients.connect(serving.url, name="b", token="tb_01_secret", shared_memory=False)
        serving.wait_until_idle()
        serving.call(serving.server.reload)
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    kinds = [(event["event"], event["client"], event["identity"], event["action"]) for event in events]
    assert kinds[:3] == [
        ("connected", "trainer-0/a", "trainer-0", ""),
        ("disconnected", "trainer-0/a", "trainer-0", ""),
        ("refused", "b", "", ""),
    ]
    assert events[0]["credential"] == number
    assert ("changed", "", "", "reload") in kinds
    assert "secret" not in audit.read_text()


def test_what_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    for flags, words in (
        (("--tokens", str(tmp_path / "missing")), "tokens create"),
        (("--users", "nobody"), "USER=ROLE"),
        (("--audit", str(tmp_path / "missing" / "audit")), "setting audit"),
        (("--listen", "tls://127.0.0.1:0"), "tensorbus certs init"),
        (("--listen", "tls://127.0.0.1:0", "--certificates", str(tmp_path)), "is missing there"),
    ):
        status, output, errors = run("serve", "--admin", "off", "--listen", "tcp://127.0.0.1:0", *flags)
        assert (status, output) == (1, "")
        assert words in errors
        assert "Traceback" not in errors


def test_to_give_certificates_where_nothing_is_encrypted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="none of the addresses is at tls://"):
        clients.connect("tcp://127.0.0.1:1", tls=tmp_path)
