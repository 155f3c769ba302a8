"""The types with which leases.py is compiled."""

from broker.protocol.session cimport Session


cdef class Leases:
    cdef dict _arenas, _held
    cdef public object _over
    cdef object _passage

    cpdef bint due(self) except -1
    cpdef give_back(self, Session session)
