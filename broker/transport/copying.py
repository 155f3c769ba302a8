"""Copying long arrays into shared memory, while other threads run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from broker.limits import STREAMED_BYTES_MIN

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython


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
    past_caches = size >= STREAMED_BYTES_MIN
    with cython.nogil:
        if past_caches:
            streaming_copy(cython.address(target[0]), cython.address(origin[0]), size)  # type: ignore[name-defined]  # noqa: F821
        else:
            copy_bytes(cython.address(target[0]), cython.address(origin[0]), size)  # type: ignore[name-defined]  # noqa: F821
