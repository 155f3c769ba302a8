"""Whether the certificate that a listener is to show is one for a server, as its clients would judge it.

OpenSSL loads any certificate for a server; that it is no server's, or has expired, is found out by the first client
that comes, and by then the one before it is gone. So a handshake is tried that reaches nobody, in memory:

    context of the listener <--ClientHello-- one that trusts what tls.crt and ca.crt have
                            ---certificate-> and says what it thinks of it

Who has signed it is not asked: ca.crt is for those who come, and clients may trust another authority. Neither is
whether it counts yet, since the clock goes on and nobody would look again.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from broker.errors import InvalidValue

_EXPIRED: Final = 10
_NO_PURPOSE: Final = 26
"""X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_INVALID_PURPOSE (openssl/x509_vfy.h)."""


def check_purpose(context: ssl.SSLContext, folder: str, trusted: tuple[str, ...]) -> None:
    """Refuses a certificate that no client could ever accept.

    Args:
        context: of the listener.
        folder: from which it was read.
        trusted: the files there that have certificates.

    Raises:
        InvalidValue: it is for clients, or for something else.
    """
    if _NO_PURPOSE in _faults(context, folder, trusted):
        raise InvalidValue(
            "certificates", folder, "tls.crt is no server's: its extendedKeyUsage, or that of an authority above it, "
            "leaves serverAuth out; tensorbus certs issue NAME --host HOST makes one for a broker",
        )  # fmt: skip


def has_expired(context: ssl.SSLContext, folder: str, trusted: tuple[str, ...]) -> bool:
    """Whether its time is over, or that of an authority above it; arguments as of `check_purpose`."""
    return _EXPIRED in _faults(context, folder, trusted)


def _faults(context: ssl.SSLContext, folder: str, trusted: tuple[str, ...]) -> set[int]:
    return {_fault(context, Path(folder) / name) for name in trusted}


def _fault(context: ssl.SSLContext, trusted: Path) -> int:
    """What a client thinks of the certificate that trusts what is in a file, by OpenSSL's number; 0 for nothing."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(trusted)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_end = context.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server)
    try:
        for end in (client_end, server_end, client_end):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLCertVerificationError as error:
        return int(error.verify_code)
    return 0
