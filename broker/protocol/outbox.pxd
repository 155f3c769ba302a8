"""The types with which outbox.py is compiled."""

import cython

from broker.protocol.frames cimport Frame

cdef Py_ssize_t _HEADER_BYTES, _BUFFERS_MAX
cdef int _CONTROL


cdef class Outbox:
    cdef public Py_ssize_t waiting, queued_bytes, control_bytes
    cdef list _lanes

    @cython.locals(size=Py_ssize_t)
    cpdef put(self, Frame frame)
    cpdef attach(self, item, int lane)
    @cython.locals(size=Py_ssize_t, encoded=Py_ssize_t, pulled=Py_ssize_t, frame=Frame)
    cpdef Py_ssize_t take(self, Py_ssize_t budget_bytes, list buffers) except -1
