"""A private authority: what it signs, for whom, and what it takes back."""

from __future__ import annotations

import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.errors import InvalidValue

x509 = pytest.importorskip("cryptography.x509", reason="certificates are made with the library cryptography")

from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: E402
from cryptography.hazmat.primitives.serialization import (  # noqa: E402
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: E402

from broker.security.certificate_authority import CertificateAuthority  # noqa: E402
from broker.security.revocations import revoked_serials  # noqa: E402


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def usages(found: x509.Certificate) -> set[object]:
    return set(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_process_gets_a_folder_with_all_that_it_needs_and_nothing_else(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "job")
    folder, issued = authority.issue("trainer-3", ("trainer",), "team-a")
    assert folder == tmp_path / "job" / "trainer-3"
    assert sorted(file.name for file in folder.iterdir()) == ["ca.crt", "tls.crt", "tls.key"]
    found = certificate(folder / "tls.crt")
    assert found.subject.rfc4514_string() == "CN=trainer-3,OU=trainer,O=team-a"
    found.verify_directly_issued_by(certificate(tmp_path / "job" / "ca.crt"))
    assert int(issued.serial, 16) == found.serial_number


def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "job")
    folder, _ = authority.issue("trainer-3")
    for file in (tmp_path / "job" / "ca.key", folder / "tls.key"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for directory in (tmp_path / "job", folder):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_only_a_certificate_with_hosts_can_be_a_brokers(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path)
    rank = certificate(authority.issue("trainer-3")[0] / "tls.crt")
    broker = certificate(authority.issue("broker", hosts=("host.example", "10.0.0.1", "::1"))[0] / "tls.crt")
    assert usages(rank) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    assert ExtendedKeyUsageOID.SERVER_AUTH in usages(broker)
    names = broker.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["host.example"]
    assert [str(found) for found in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path, days=2)
    found = certificate(authority.issue("trainer-3", days=100)[0] / "tls.crt")
    assert found.not_valid_after_utc <= datetime.now(UTC) + timedelta(days=2)


def test_an_authority_whose_key_cannot_sign_is_refused(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "ca.key").write_bytes(locked)
    with pytest.raises(InvalidValue, match="there is no authority: .*encrypted"):
        CertificateAuthority(tmp_path)
    other = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "ca.key").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(InvalidValue, match="is of another kind than tensorbus makes"):
        CertificateAuthority(tmp_path)


def test_a_second_authority_is_not_put_over_the_first(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path)
    with pytest.raises(InvalidValue, match="has an authority already"):
        CertificateAuthority.create(tmp_path)
    with pytest.raises(InvalidValue, match="certs init makes one"):
        CertificateAuthority(tmp_path / "other")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 65, "a b", "ä"])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    authority = CertificateAuthority.create(tmp_path / "job")
    for call in (lambda: authority.issue(name), lambda: authority.issue("a", (name,))):
        with pytest.raises(InvalidValue):
            call()
    assert [found.name for found in tmp_path.iterdir()] == ["job"]


def test_what_is_revoked_stands_in_the_list_of_every_broker_here(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path)
    broker, _ = authority.issue("broker", hosts=("localhost",))
    old, new = authority.issue("trainer-3")[1], authority.issue("trainer-3")[1]
    kept = authority.issue("trainer-4")[1]
    assert revoked_serials(broker / "ca.crl") == set()
    authority.revoke(old.serial)
    assert revoked_serials(broker / "ca.crl") == {old.serial}
    assert [one.serial for one in authority.revoke("trainer-3")] == [new.serial]
    assert revoked_serials(broker / "ca.crl") == {old.serial, new.serial}
    assert kept.serial not in revoked_serials(tmp_path / "ca.crl")
    with pytest.raises(InvalidValue, match="certs list shows"):
        authority.revoke("trainer-3")
    # A broker that comes later knows it from the start.
    later, _ = authority.issue("broker-2", hosts=("localhost",))
    assert old.serial in revoked_serials(later / "ca.crl")


def test_commands_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    CertificateAuthority.create(tmp_path)
    names = [f"trainer-{n}" for n in range(8)]
    threads = [threading.Thread(target=CertificateAuthority(tmp_path).issue, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.name for one in CertificateAuthority(tmp_path).issued()) == names
