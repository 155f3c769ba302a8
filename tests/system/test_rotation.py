"""Certificates that are replaced under load; `python -m tests.system.rotation 100` does it longer."""

from __future__ import annotations

import pytest

pytest.importorskip("cryptography", reason="certificates are made with the library cryptography")

from tests.system.rotation import rotate  # noqa: E402


def test_certificates_are_replaced_under_load_and_no_connection_is_dropped_and_no_message_lost() -> None:
    told = rotate(5)
    assert told["dropped"] == 0
    assert told["messages"] > 0
