"""The types with which locks.py is compiled, and what lies under threading.Lock."""

import cython

from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_type_lock,
)


@cython.final
cdef class Lock:
    cdef PyThread_type_lock _under
    cdef bint _held
    cdef object _lock

    cpdef bint acquire(self, bint blocking=*) except -1
    cpdef release(self)


cdef inline PyThread_type_lock _allocated() except NULL:
    cdef PyThread_type_lock under = PyThread_allocate_lock()
    if under is NULL:
        raise MemoryError
    return under


cdef inline bint _taken(PyThread_type_lock under, bint blocking) except -1:
    if PyThread_acquire_lock(under, NOWAIT_LOCK):
        return True
    if blocking:
        with nogil:
            PyThread_acquire_lock(under, WAIT_LOCK)
    return blocking


cdef inline void _given_back(PyThread_type_lock under) noexcept:
    PyThread_release_lock(under)


cdef inline void _freed(PyThread_type_lock under, bint held) noexcept:
    if under is not NULL:
        if held:
            PyThread_release_lock(under)
        PyThread_free_lock(under)
