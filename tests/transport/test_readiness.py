"""The descriptor under the connections of ZeroMQ and UCX."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from broker.transport.readiness import Readiness
from tests.descriptors import opened

from .driving import is_ready


@pytest.fixture
def readiness() -> Iterator[Readiness]:
    made = Readiness()
    yield made
    made.close()


def is_readable(readiness: Readiness) -> bool:
    return is_ready(readiness.fileno(), select.POLLIN)


def test_it_is_readable_while_it_is_set(readiness: Readiness) -> None:
    assert not is_readable(readiness)
    for _ in range(2):
        readiness.set()
    assert is_readable(readiness)
    assert is_readable(readiness)
    for _ in range(2):
        readiness.set(False)
    assert not is_readable(readiness)


def test_it_is_readable_while_another_descriptor_is_that_it_includes(readiness: Readiness) -> None:
    with_end = Readiness()
    readiness.include(with_end.fileno())
    with_end.set()
    assert is_readable(readiness)
    readiness.exclude(with_end.fileno())
    assert not is_readable(readiness)
    with_end.close()


def test_it_gives_its_descriptors_back_once() -> None:
    before = len(opened())
    made = Readiness()
    made.close()
    # They get the numbers that are free again.
    others = [os.eventfd(0) for _ in range(4)]
    made.close()
    made.set()
    assert made.fileno() == -1
    for other in others:
        os.close(other)
    assert len(opened()) <= before
