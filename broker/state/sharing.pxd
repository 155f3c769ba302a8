"""The types with which sharing.py is compiled."""

import cython

from broker.protocol.frames cimport Frame
from broker.protocol.places cimport packed_place, place_of
from broker.topics.messages cimport Stream, shared_stream


cdef class Arena:
    cdef public object number, memory, owner
    cdef public str device
    cdef public long long size_bytes, loans, lent_bytes
    cdef public bint ended
    cdef public set readers
    cdef list _streams

    cpdef look(self)


cdef class Loan:
    cdef public Arena arena
    cdef public long long number, offset, size_bytes

    cpdef fill(self, Arena arena, long long number, long long offset, long long size_bytes)


cdef class LentBytes:
    cdef Loan loan
    cdef object memory


cdef class Shares:
    cdef public dict leases, devices
    cdef public bint reads
    cdef object _record, _flush, _descriptor_max, _device_bytes_max
    cdef public dict _lent, _known
    cdef dict _arenas, _asked
    cdef set _living
    cdef list _over
    cdef bint _attached
    cdef public long long _last_lease

    @cython.locals(arena=Arena, loan=Loan, stream=Stream, view=LentBytes)
    cpdef borrow(self, Frame frame)
    cpdef bint maps(self, Arena arena) except -1
    cpdef hold(self, Loan loan)
    cpdef over(self, number)


cdef int _IN_PARTS


@cython.locals(shares=Shares)
cpdef borrowed(session, Frame frame)
