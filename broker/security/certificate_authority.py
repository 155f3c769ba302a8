"""A private authority for one job, and the certificates that it has signed: a folder. Needs `cryptography`.

    DIR/ca.crt, ca.key, ca.crl     the authority: whom everybody trusts, its secret, and what it has taken back
    DIR/issued.json                what it has signed
    DIR/broker/, DIR/trainer-0/    what each process gets: ca.crt, tls.crt, tls.key, and of the broker ca.crl

Whoever has ca.key can be anybody: it stays where it was made. A process gets its own folder and nothing else. The
subject of a certificate says who has it (common name), what it is (organizational units: roles) and whose
(organization: tenant). Only a certificate with hosts can be a broker's, so that no rank can pass for one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec

from broker.errors import BrokerError, InvalidValue
from broker.files import read_file
from broker.limits import CERTIFICATE_FILE_BYTES_MAX
from broker.security.files import locked, replace_file
from broker.security.revocations import serial_text

try:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise BrokerError("certificates are made with the library cryptography: pip install 'tensorbus[tls]'") from error

BROKER: Final = "broker"
AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 365
LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
_SKEW: Final = timedelta(minutes=5)
"""Clocks of a cluster differ; a certificate counts a little before it was made."""
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", re.ASCII)
_PUBLIC: Final = 0o644


class Issued(msgspec.Struct, omit_defaults=True):
    """A certificate that was signed.

    Attributes:
        name: who has it.
        serial: its number, in hexadecimal digits.
        expires: when it ends, ISO 8601.
        roles: what the one who has it is.
        tenant: whose.
        hosts: for which it can be a broker's.
        revoked: when it was revoked, ISO 8601; empty if it was not.
    """

    name: str
    serial: str
    expires: str
    roles: list[str] = []
    tenant: str = ""
    hosts: list[str] = []
    revoked: str = ""


class CertificateAuthority:
    """The authority in a folder."""

    def __init__(self, folder: Path) -> None:
        """Reads it.

        Raises:
            InvalidValue: there is none.
        """
        self._folder = folder
        try:
            self._certificate = x509.load_pem_x509_certificate(read_file(folder / "ca.crt", CERTIFICATE_FILE_BYTES_MAX))
            key = load_pem_private_key(read_file(folder / "ca.key", CERTIFICATE_FILE_BYTES_MAX), None)
        except (OSError, ValueError, TypeError) as error:
            # The last is of a key that has a password.
            problem = f"there is no authority: {error}; tensorbus certs init makes one"
            raise InvalidValue("folder", str(folder), problem) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            problem = "is of another kind than tensorbus makes; sign with what has made it, or make an authority here"
            raise InvalidValue("key of the authority", str(folder / "ca.key"), problem)
        self._key = key

    @classmethod
    def create(cls, folder: Path, days: int = AUTHORITY_DAYS) -> CertificateAuthority:
        """Makes a new one.

        Raises:
            InvalidValue: there is one already, or the folder cannot be written.
        """
        if (folder / "ca.key").exists():
            raise InvalidValue("folder", str(folder), "has an authority already; tensorbus certs issue uses it")
        _make_folder(folder)
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        # A number of its own: two jobs' authorities must not look alike.
        subject = _subject(f"tensorbus authority {x509.random_serial_number():x}"[:40], (), "")
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        replace_file(folder / "ca.key", _pem(key))
        replace_file(folder / "ca.crt", certificate.public_bytes(Encoding.PEM), _PUBLIC)
        authority = cls(folder)
        authority._write_issued([])
        authority._write_revocations([])
        return authority

    def issue(
        self,
        name: str,
        roles: Sequence[str] = (),
        tenant: str = "",
        hosts: Sequence[str] = (),
        days: float = CERTIFICATE_DAYS,
    ) -> tuple[Path, Issued]:
        """Signs a certificate and writes the folder that its owner gets, in the place of an older one.

        Args:
            name: who gets it; also what the folder is called.
            roles: what it is.
            tenant: whose topics and groups it sees.
            hosts: names and numbers at which it is dialled, if it is a broker.
            days: how long it counts.

        Raises:
            InvalidValue: a name, role, tenant or host cannot be, or the folder cannot be written.
        """
        for what, text in (("name", name), *(("role", role) for role in roles), ("tenant", tenant or "none")):
            if not _NAME.fullmatch(text):
                raise InvalidValue(what, text, "must be 1 to 64 letters, digits, '.', '-' and '_', the first no '.'")
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        now = datetime.now(UTC)
        expires = min(now + timedelta(days=days), self._certificate.not_valid_after_utc)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject(name, roles, tenant))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(min(now, expires) - _SKEW)
            .not_valid_after(expires)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts:
            usages.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
            )
        certificate = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False).sign(self._key, SHA256())
        until = expires.isoformat(timespec="seconds")
        issued = Issued(name, serial_text(serial), until, list(roles), tenant, list(hosts))
        with locked(self._folder):
            self._write_issued([*self.issued(), issued])
            folder = self._folder / name
            _make_folder(folder)
            replace_file(folder / "ca.crt", self._certificate.public_bytes(Encoding.PEM), _PUBLIC)
            replace_file(folder / "tls.key", _pem(key))
            replace_file(folder / "tls.crt", certificate.public_bytes(Encoding.PEM), _PUBLIC)
            if hosts:
                replace_file(folder / "ca.crl", (self._folder / "ca.crl").read_bytes(), _PUBLIC)
        return folder, issued

    def revoke(self, wanted: str) -> list[Issued]:
        """Takes back a certificate, by its serial number, or all of a name; brokers' folders here are told.

        Raises:
            InvalidValue: there is none that counts.
        """
        with locked(self._folder):
            issued = self.issued()
            found = [one for one in issued if wanted in (one.name, one.serial) and not one.revoked]
            if not found:
                problem = "no certificate of this name or number counts; tensorbus certs list shows them"
                raise InvalidValue("certificate", wanted, problem)
            for one in found:
                one.revoked = datetime.now(UTC).isoformat(timespec="seconds")
            self._write_issued(issued)
            self._write_revocations([one for one in issued if one.revoked])
        return found

    def hosts_of(self, name: str) -> list[str]:
        """For which hosts the last certificate of a name is; none if it is no broker's, or there is none.

        Raises:
            InvalidValue: the list of what was signed cannot be read.
        """
        return next((one.hosts for one in reversed(self.issued()) if one.name == name), [])

    def issued(self) -> list[Issued]:
        """What was signed, the oldest first.

        Raises:
            InvalidValue: the list cannot be read.
        """
        file = self._folder / "issued.json"
        try:
            return msgspec.json.decode(read_file(file, CERTIFICATE_FILE_BYTES_MAX), type=list[Issued])
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise InvalidValue("list of certificates", str(file), f"cannot be read: {error}") from error

    def _write_issued(self, issued: Sequence[Issued]) -> None:
        text = json.dumps(msgspec.to_builtins(list(issued)), indent=1) + "\n"
        replace_file(self._folder / "issued.json", text.encode())

    def _write_revocations(self, revoked: Sequence[Issued]) -> None:
        now = datetime.now(UTC)
        # It is a file that is copied, and not asked for: it counts as long as the authority does.
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - _SKEW)
            .next_update(self._certificate.not_valid_after_utc)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
        )
        for one in revoked:
            when = datetime.fromisoformat(one.revoked)
            entry = x509.RevokedCertificateBuilder().serial_number(int(one.serial, 16)).revocation_date(when).build()
            builder = builder.add_revoked_certificate(entry)
        data = builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)
        replace_file(self._folder / "ca.crl", data, _PUBLIC)
        for file in self._folder.glob("*/ca.crl"):
            replace_file(file, data, _PUBLIC)

    def __repr__(self) -> str:
        return f"<CertificateAuthority {self._folder}>"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidValue("folder", str(folder), f"cannot be made: {error.strerror}") from error


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _subject(name: str, roles: Sequence[str], tenant: str) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, tenant)] if tenant else []
    attributes += [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role) for role in roles]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise InvalidValue("host", host, f"is neither a name nor a number: {error}") from error


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
