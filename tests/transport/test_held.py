"""Bytes at an address: who holds what they lie in, and who may write to them."""

from __future__ import annotations

import ctypes
import weakref

import numpy as np
import pytest

from broker.transport.held import AVAILABLE, hold

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="these views take the compiled module broker.transport.held")


class Owner:
    """Bytes, for as long as somebody holds this."""

    def __init__(self) -> None:
        self.memory = ctypes.create_string_buffer(b"0123456789")

    def view(self, *, writable: bool) -> memoryview:
        return hold(self, ctypes.addressof(self.memory) + 2, 5, writable)


def test_the_bytes_are_those_at_the_address_and_hold_the_object_to_the_last_array() -> None:
    owner = Owner()
    alive = weakref.ref(owner)
    array = np.frombuffer(owner.view(writable=False), np.uint8)[1:]
    assert bytes(array) == b"3456"
    del owner
    assert alive() is not None
    del array
    assert alive() is None


def test_only_who_may_write_can() -> None:
    owner = Owner()
    owner.view(writable=True)[:2] = b"ab"
    assert owner.memory.value == b"01ab456789"
    view = owner.view(writable=False)
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 0
    assert not np.frombuffer(view, np.uint8).flags.writeable
