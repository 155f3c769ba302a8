"""The types with which clock.py is compiled, and what it does in place of the standard library."""

from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clockid_t, timespec


cdef inline long long _now_ns(clockid_t clock) noexcept:
    cdef timespec now
    clock_gettime(clock, &now)
    return now.tv_sec * 1_000_000_000LL + now.tv_nsec


cpdef long long monotonic_ns() except? -1
cpdef long long wall_ns() except? -1
