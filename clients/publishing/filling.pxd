"""The types with which filling.py is compiled, and the clock that time.monotonic_ns reads."""

import cython

from broker.protocol.batches cimport Batch
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef inline long long _now_ns() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1000000000LL + now.tv_nsec


@cython.locals(batch=Batch)
cpdef bint add(dict filling, topic, unsigned char content, bytes payload) except -1
