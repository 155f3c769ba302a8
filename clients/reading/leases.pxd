"""The types with which leases.py is compiled."""

import cython

from libc.stdint cimport uintptr_t

from broker.protocol.frames cimport Frame
from broker.protocol.line cimport Releases
from broker.protocol.places cimport Place, place_in
from broker.protocol.session cimport Session
from broker.transport.held cimport Held


cdef class _Told:
    cdef public bint due, nobody


cdef class HeldOnLine:
    cdef public Releases releases
    cdef public dict held
    cdef public _Told told
    cdef public bint listed


cdef class LineLease(Held):
    cdef HeldOnLine _line
    cdef object _passage
    cdef unsigned long long _position


cdef class _Mapped:
    cdef public object memory
    cdef public uintptr_t address
    cdef public unsigned long long size_bytes
    cdef public bint on_device


cdef class Leases:
    cdef dict _arenas, _held
    cdef public object _over
    cdef object _passage
    cdef _Told _told
    cdef list _lines

    @cython.locals(mapped=_Mapped)
    cpdef payload(self, Frame frame)
    @cython.locals(mapped=_Mapped, room='unsigned long long')
    cdef _Mapped _find(self, unsigned int number, unsigned long long offset, unsigned long long size_bytes)
    @cython.locals(
        mapped=_Mapped, lease=LineLease, size_bytes='unsigned long long', offset='unsigned long long', place='const Place *'
    )
    cpdef lined(self, HeldOnLine line, unsigned long long position, Frame frame)
    @cython.locals(due=bint, ended=bint, line=HeldOnLine, releases=Releases, told=_Told)
    cdef _look(self, Session session)
    cpdef bint due(self) except -1
    cpdef give_back(self, Session session)
