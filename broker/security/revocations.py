"""Which certificates a list of revocations names. This module does input, and needs `cryptography`."""

from __future__ import annotations

from pathlib import Path

from broker.errors import InvalidValue
from broker.files import read_file
from broker.limits import CERTIFICATE_FILE_BYTES_MAX


def revoked_serials(file: Path) -> set[str]:
    """The serial numbers in a list, PEM, each in hexadecimal digits as the ssl module writes it.

    Raises:
        InvalidValue: it cannot be read, or `cryptography` is not installed.
    """
    try:
        from cryptography import x509
    except ImportError as error:
        problem = "sessions that are open are not ended by it without the library cryptography: tensorbus[tls]"
        raise InvalidValue("list of revocations", str(file), problem) from error
    try:
        revoked = x509.load_pem_x509_crl(read_file(file, CERTIFICATE_FILE_BYTES_MAX))
    except (OSError, ValueError) as error:
        raise InvalidValue("list of revocations", str(file), f"cannot be read: {error}") from error
    return {serial_text(entry.serial_number) for entry in revoked}


def serial_text(serial: int) -> str:
    """A serial number as the ssl module writes it: whole bytes in capital digits."""
    text = f"{serial:X}"
    return text if len(text) % 2 == 0 else f"0{text}"
