"""The types with which line_leases.py is compiled."""

from broker.protocol.line cimport Releases
from broker.state.sharing cimport Loan, Shares


cdef class LineLeases:
    cdef public object reader, publisher
    cdef Shares _shares
    cdef dict _held, _numbers
    cdef Releases _releases
    cdef unsigned long long _seen

    cpdef look(self)
    cpdef hold(self, long long position, Loan loan)
    cpdef collect(self)
    cdef _end(self, position)
