"""The types with which batches.py is compiled."""

import cython

from libc.string cimport memcpy


cdef class Batch:
    cdef public long long due_ns, last_ns
    cdef public Py_ssize_t count, count_max, size_bytes, size_max
    cdef long long _wall_offset_ns
    cdef bytearray _data
    cdef list _parts

    @cython.locals(to=cython.p_uchar, start=Py_ssize_t, head=Py_ssize_t, body_bytes=Py_ssize_t, size=Py_ssize_t)
    cpdef add(self, unsigned char content, unsigned long long time_ns, bytes body, bytes payload)

    @cython.locals(size=Py_ssize_t)
    cpdef bint add_more(self, unsigned char content, bytes payload, long long now_ns) except -1

    @cython.locals(payload=bytes)
    cpdef bytes close(self)
