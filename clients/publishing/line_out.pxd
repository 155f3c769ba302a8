"""The types with which line_out.py is compiled."""

import cython

from broker.protocol.frames cimport Frame
from broker.protocol.line cimport Writer
from broker.transport.calls cimport ring


cdef class LineOut:
    cdef public unsigned int number
    cdef public int asks
    cdef Writer _writer
    cdef list _bells
    cdef long long _told
    cdef public frozenset arenas
    cdef object __weakref__
    cdef public long long shared_bytes_max

    @cython.locals(sleepers=int)
    cpdef bint write(self, bytes header, bytes body, bytes payload) except -1
    cpdef bint carries(self, Frame frame, name) except -1
    cpdef bint gives_back(self, long long size_bytes) except -1
    @cython.locals(undrained_bytes=cython.longlong)
    cpdef bint tells(self, bint soon, bint low) except -1
    @cython.locals(reader=int)
    cdef _wake(self, int sleepers)
