"""The types with which leases.py is compiled."""

from broker.protocol.frames cimport Frame
from broker.protocol.line cimport Releases
from broker.protocol.session cimport Session


cdef class Leases:
    cdef dict _arenas, _held
    cdef public object _over
    cdef object _passage, _told
    cdef dict _releases

    cdef tuple _find(self, Frame frame)
    cpdef lined(self, Releases releases, unsigned long long position, Frame frame)
    cdef _forget_over(self)
    cdef _look(self, Session session)
    cpdef bint due(self) except -1
    cpdef give_back(self, Session session)
