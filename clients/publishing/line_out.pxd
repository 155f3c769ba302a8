"""The types with which line_out.py is compiled."""

import cython

from broker.protocol.frames cimport Frame
from broker.protocol.line cimport Writer
from broker.transport.calls cimport ring


cdef class _Lent:
    cdef unsigned int loan, readers
    cdef long long size_bytes
    cdef bint kept


cdef class LineOut:
    cdef public unsigned int number
    cdef public int asks
    cdef Writer _writer
    cdef list _bells
    cdef long long _told
    cdef public frozenset arenas
    cdef object __weakref__
    cdef public long long shared_bytes_max, keeps_messages, keeps_bytes
    cdef dict _known
    cdef object _kept
    cdef list _back
    cdef long long _kept_bytes

    @cython.locals(sleepers=int)
    cpdef bint write(self, bytes header, bytes body, bytes payload, long long shared_bytes=*) except -1
    @cython.locals(known=dict, lent=_Lent, oldest=_Lent, loan='unsigned int')
    cdef _lend(self, bytes place, long long size_bytes)
    @cython.locals(writer=Writer, known=dict, lent=_Lent, back=list, reader=int, _=Py_ssize_t, position=cython.ulonglong)
    cpdef list take_back(self)
    cpdef bint carries(self, Frame frame, name) except -1
    cpdef bint gives_back(self, long long size_bytes) except -1
    @cython.locals(undrained_bytes=cython.longlong)
    cpdef bint tells(self, bint soon, bint low) except -1
    @cython.locals(reader=int)
    cdef _wake(self, int sleepers)


cdef class LinesOut:
    cdef public bint lends, takes_back, awaits
    cdef list _taking
    cdef object _bells, _lines

    @cython.locals(line=LineOut, found=list, ended=bint, awaits=bint)
    cpdef list take_back(self)
