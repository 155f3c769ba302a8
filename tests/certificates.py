"""Certificates for tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def make_certificates(folder: Path) -> Path:
    """Makes an authority in a folder, with certificates for a broker and for trainer-0."""
    pytest.importorskip("cryptography", reason="certificates are made with the library cryptography")
    from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority

    authority = CertificateAuthority.create(folder)
    # Tests are its clients as well, and may do everything.
    authority.issue(BROKER, ("admin",), hosts=LOCAL_HOSTS)
    authority.issue("trainer-0", ("trainer",))
    return folder
