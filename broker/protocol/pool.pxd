"""The types with which pool.py is compiled."""

import cython

from cpython.ref cimport Py_REFCNT


cdef Py_ssize_t _GRAIN_BYTES, _ALIGNMENT_BYTES, _LATEST_MAX, _OTHERS_MAX, _REFERENCES_WHEN_FREE


cdef class _Kept:
    cdef public object buffer
    cdef public Py_ssize_t start
    cdef public bint asked_for


cdef class _Shelf:
    cdef public list kept
    cdef Py_ssize_t _next

    @cython.locals(size=Py_ssize_t, position=Py_ssize_t)
    cdef _Kept take_free(self)
    @cython.locals(taken=_Kept)
    cdef _Kept _take(self, Py_ssize_t position)


cdef class BufferPool:
    cdef public Py_ssize_t bytes_max, held_bytes
    cdef public object look
    cdef public dict _shelves
    cdef Py_ssize_t _unlooked_bytes
    cdef long long _let_go_ns

    @cython.locals(rounded=Py_ssize_t, shelf=_Shelf, kept=_Kept)
    cpdef acquire(self, Py_ssize_t size_bytes)
    cpdef tick(self, long long now_ns)
    cpdef let_go(self)
    cdef bint _trim(self, Py_ssize_t wanted_bytes) except -1
    cpdef count(self, Py_ssize_t size_bytes)


@cython.locals(each=_Kept)
cdef Py_ssize_t _references(list kept, Py_ssize_t position) except -1
