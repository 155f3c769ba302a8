"""What certificates one end of a TLS connection shows and trusts, and what a failed handshake means.

ca.crt    the authorities that are trusted, PEM           tls.key   its private key, without a password
tls.crt   the own certificate, and those up to a root     ca.crl    certificates that are revoked; may be missing
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from broker.errors import ConnectionClosed, InvalidValue
from broker.files import check_file
from broker.transport.tls.fitness import check_purpose, has_expired

AUTHORITY: Final = "ca.crt"
CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
REVOKED: Final = "ca.crl"
FILES: Final = (AUTHORITY, CERTIFICATE, KEY, REVOKED)
_REVOCATIONS: Final = ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
DENIED: Final = 7
"""The code of docs/wire.md section 7 for whoever is not let in."""

_ISSUE: Final = "get a new one (tensorbus certs issue)"
_DIALLER_WORDS: Final = (
    ("ALERT_CERTIFICATE_EXPIRED", f"the broker refused this client's certificate: it has expired; {_ISSUE}"),
    ("ALERT_CERTIFICATE_REVOKED", f"the broker refused this client's certificate: it was revoked; {_ISSUE}"),
    (
        "ALERT_UNKNOWN_CA",
        "the broker refused this client's certificate: another authority has signed it; get one of the broker's own "
        "(tensorbus certs issue)",
    ),
    ("ALERT_CERTIFICATE_REQUIRED", f"the broker lets nobody in without a certificate: {_ISSUE} and give it as tls="),
    ("ALERT_BAD_CERTIFICATE", f"the broker refused this client's certificate; {_ISSUE}"),
    ("ALERT_UNSUPPORTED_CERTIFICATE", f"the broker refused this client's certificate: it is no client's; {_ISSUE}"),
    ("ALERT_CERTIFICATE_UNKNOWN", f"the broker refused this client's certificate; {_ISSUE}"),
)
"""What a broker says to a client that it does not let in (RFC 8446, section 6.2)."""


def listener_context(folder: str) -> ssl.SSLContext:
    """For a listener: a peer may show a certificate, and one that it shows must be good.

    Raises:
        InvalidValue: a file is missing or cannot be used; the text says which.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    # Whoever shows no certificate may still have a token; whether that is enough is not decided here.
    context.verify_mode = ssl.CERT_OPTIONAL
    # A resumed session would not be asked for its certificate again, which may be revoked by then.
    context.num_tickets = 0
    _load(context, folder, own=True)
    check_purpose(context, folder, (CERTIFICATE, AUTHORITY))
    return context


def expired(context: ssl.SSLContext, folder: str) -> str:
    """That the certificate of a listener has expired, in words; empty when it has not."""
    if not has_expired(context, folder, (CERTIFICATE, AUTHORITY)):
        return ""
    return f"{CERTIFICATE}, or an authority above it, has expired: no client accepts it; {_ISSUE}"


def check_successor(before: ssl.SSLContext, after: ssl.SSLContext, folder: str) -> None:
    """Refuses to go on with a certificate that has expired, or without a list of revocations where there was one.

    Who was revoked would be let in again.

    Raises:
        InvalidValue: it has expired, or the list is gone.
    """
    problem = expired(after, folder)
    if problem:
        raise InvalidValue("certificates", folder, problem)
    if before.verify_flags & _REVOCATIONS and not after.verify_flags & _REVOCATIONS:
        raise InvalidValue("certificates", folder, f"{REVOKED} is gone, and with it who was revoked; put it back")


def dialler_context(folder: str) -> ssl.SSLContext:
    """For a dialler: the listener must show a certificate of its host; an empty folder trusts the system's authorities.

    Raises:
        InvalidValue: a file is missing or cannot be used; the text says which.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if folder:
        _load(context, folder, own=(Path(folder) / CERTIFICATE).exists())
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _load(context: ssl.SSLContext, folder: str, *, own: bool) -> None:
    directory = Path(folder)
    for name in FILES:
        # OpenSSL would read a device for ever.
        try:
            check_file(directory / name)
        except OSError:
            continue
        except ValueError as error:
            raise InvalidValue("certificates", folder, f"{name} cannot be used: it {error}") from error
    try:
        context.load_verify_locations(directory / AUTHORITY)
    except (OSError, ValueError) as error:
        raise _unusable(folder, AUTHORITY, error) from error
    if own:
        try:
            # An empty password: without one OpenSSL would ask the terminal for it.
            context.load_cert_chain(directory / CERTIFICATE, directory / KEY, password="")
        except (OSError, ValueError) as error:
            raise _unusable(folder, f"{CERTIFICATE} with {KEY}", error) from error
    if (directory / REVOKED).exists():
        try:
            context.load_verify_locations(directory / REVOKED)
        except (OSError, ValueError) as error:
            raise _unusable(folder, REVOKED, error) from error
        context.verify_flags |= _REVOCATIONS


def _unusable(folder: str, name: str, error: OSError | ValueError) -> InvalidValue:
    if not Path(folder).is_dir():
        problem = "is no folder; tensorbus certs makes one"
    elif isinstance(error, FileNotFoundError):
        missing = [file for file in (AUTHORITY, CERTIFICATE, KEY) if not (Path(folder) / file).exists()]
        problem = f"{' and '.join(missing) or name} is missing there; tensorbus certs makes such a folder"
    elif isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        problem = f"{KEY} is not the key of {CERTIFICATE}; copy both from the same place"
    elif isinstance(error, ssl.SSLError):
        reason = (error.reason or "not PEM").replace("_", " ").lower()
        problem = f"{name} cannot be used: {reason}; it must be PEM, a key without a password"
    else:
        problem = f"{name} cannot be read: {error}"
    return InvalidValue("certificates", folder, problem)


def closed_by(error: ssl.SSLError, *, dialled: bool, opening: bool) -> ConnectionClosed:
    """What an error of TLS means to the end that has met it.

    Args:
        error: as OpenSSL tells it.
        dialled: whether this end has dialled.
        opening: whether the handshake was not over.
    """
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = error.verify_message
        if not dialled:
            return ConnectionClosed(f"the peer's certificate was refused: {problem}", DENIED)
        return ConnectionClosed(
            f"the certificate that the broker shows is not accepted: {problem}; dial a name that it is for (tensorbus "
            "certs init --host NAME), with the ca.crt that has signed it in the folder of tls= or $TENSORBUS_TLS"
        )
    if dialled:
        words = next((words for part, words in _DIALLER_WORDS if part in reason), "")
        if words:
            return ConnectionClosed(words, DENIED)
    elif "ALERT" in reason:
        told = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return ConnectionClosed(f"the peer broke the connection off: it says {told}; does it trust our ca.crt?")
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE") and opening:
        return ConnectionClosed(
            "what answers there does not speak TLS; is it a tcp:// address?"
            if dialled
            else "the peer does not speak TLS; it should dial tls:// here"
        )
    if "PROTOCOL" in reason:
        return ConnectionClosed("the peer does not speak TLS 1.3, the only version that is spoken here")
    return ConnectionClosed(f"TLS failed with the peer: {reason.replace('_', ' ').lower() or error}")
