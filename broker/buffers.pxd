"""The types with which buffers.py is compiled."""

import cython


cdef Py_ssize_t _JOINED


cdef class Pieces:
    cdef object _parts, _part
    cdef Py_ssize_t _offset

    @cython.locals(size=Py_ssize_t, short=list)
    cpdef take(self, Py_ssize_t size_bytes, list buffers)
