"""The daemon of most system tests: one for each, with nothing but TCP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon import Daemon


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon(admin="off") as serving:
        yield serving
