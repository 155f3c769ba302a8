"""The types with which sharing.py is compiled."""


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
    cdef public object number
    cdef public long long offset, size_bytes


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

    cpdef bint maps(self, Arena arena) except -1
    cpdef hold(self, Loan loan)
    cpdef over(self, number)
