# ruff: noqa: F821
# mypy: disable-error-code="name-defined,attr-defined,no-any-return,untyped-decorator"
"""Bytes at an address, which keep an object alive for as long as anybody looks at them.

Only the compiled module can do this: it is the whole of what a view of shared memory takes beside Python's memoryview.
"""

from __future__ import annotations

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

AVAILABLE = bool(cython.compiled)
"""Whether there can be such."""


class Held:
    """Whose buffer the bytes are; made by `hold`, or what is there for as long as they are looked at."""

    _holder: object
    _address: int
    _size_bytes: int
    _read_only: bool

    @cython.locals(buffer="Py_buffer *", flags="int")
    def __getbuffer__(self, buffer: object, flags: int) -> None:
        PyBuffer_FillInfo(buffer, self, cython.cast("void *", self._address), self._size_bytes, self._read_only, flags)


def hold(holder: object, address: int, size_bytes: int, writable: bool) -> memoryview:
    """Some bytes; they, and whatever is made of them without a copy, keep `holder` alive, which keeps them there.

    Args:
        holder: is kept.
        address: of the first byte.
        size_bytes: how many.
        writable: whether they may be written to.
    """
    held = Held.__new__(Held)
    held._holder = holder
    held._address = address
    held._size_bytes = size_bytes
    held._read_only = not writable
    return PyMemoryView_FromObject(held)
