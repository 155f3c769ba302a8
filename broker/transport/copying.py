# ruff: noqa: F821
# mypy: disable-error-code="name-defined,attr-defined,no-any-return,untyped-decorator"
"""Copying long arrays into shared memory, while other threads run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from broker.limits import STREAMED_BYTES_MIN

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

_PAST_CACHES = STREAMED_BYTES_MIN


def copy(to: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8]) -> None:
    """Copies flat bytes of the same length.

    Compiled, a long copy goes past the caches (streaming_copy.h): its reader is another process, which would not find
    all of it there anyway. A shorter one is never the slow one of some processors (copy_bytes.h).
    """
    size = source.size
    if not cython.compiled or not size:
        np.copyto(to, source)
        return
    if to.size != size:
        raise ValueError(f"cannot copy {size} bytes to {to.size}")
    target, origin = to, source
    with cython.nogil:
        _copied(cython.address(target[0]), cython.address(origin[0]), size)


@cython.locals(buffer="Py_buffer")
def copy_flat(address: int, source: npt.NDArray[np.generic], size_bytes: int) -> None:
    """Copies an array's bytes to an address, where there have to be so many; as `copy`, without arrays over both. Only
    the compiled module can.

    Raises:
        ValueError: the array is not contiguous, or of a dtype of which Python knows no buffer; nothing was copied.
    """
    PyObject_GetBuffer(source, cython.address(buffer), PyBUF_SIMPLE)
    try:
        if buffer.len != size_bytes:
            raise ValueError(f"cannot copy {buffer.len} bytes to {size_bytes}")
        with cython.nogil:
            _copied(
                cython.cast("unsigned char *", address), cython.cast("const unsigned char *", buffer.buf), buffer.len
            )
    finally:
        PyBuffer_Release(cython.address(buffer))
