"""The types with which locks.py is compiled, and what rings for who waits."""

import cython

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
    PyThread_type_lock,
)


cdef bint _UNBROKEN


@cython.final
cdef class Lock:
    cdef PyThread_type_lock _bell
    cdef bint _held, _rung
    cdef Py_ssize_t _waiting
    cdef object _lock, _owner
    cdef unsigned long _thread

    cpdef bint acquire(self, bint blocking=*) except -1
    cpdef release(self)


@cython.final
cdef class Condition:
    cdef Lock _lock
    cdef list _waiting

    cpdef wait(self, timeout_s=*)
    cpdef notify_all(self)


cdef inline int _heed_signals() except -1:
    return PyErr_CheckSignals()


cdef extern from "pthread.h":
    unsigned long _this_thread "pthread_self"() nogil


cdef inline PyThread_type_lock _silent_bell() except NULL:
    cdef PyThread_type_lock bell = PyThread_allocate_lock()
    if bell is NULL:
        raise MemoryError
    PyThread_acquire_lock(bell, NOWAIT_LOCK)
    return bell


cdef inline void _sleep(PyThread_type_lock bell) noexcept:
    with nogil:
        PyThread_acquire_lock(bell, WAIT_LOCK)


cdef inline void _ring(PyThread_type_lock bell) noexcept:
    PyThread_release_lock(bell)


cdef inline void _freed(PyThread_type_lock bell, bint rung) noexcept:
    if bell is not NULL:
        if not rung:
            PyThread_release_lock(bell)
        PyThread_free_lock(bell)
