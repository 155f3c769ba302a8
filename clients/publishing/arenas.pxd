"""The types with which arenas.py is compiled."""

import cython

from broker.protocol.places cimport packed_place
from broker.transport.copying cimport copy_flat
from clients.connection.signals cimport Signal
from clients.publishing.blocks cimport Arena, Block, block_in, block_of


cdef long long _LAST_LOAN


cdef class Arenas:
    cdef public bint enabled, _full, _in_vain
    cdef public Py_ssize_t lent_bytes, _held_bytes, _ahead_bytes
    cdef public Signal came_back
    cdef public object _lock
    cdef public long long _last_arena, _last_loan
    cdef public dict _arenas, _free, _lent
    cdef public set _untold
    cdef public object _over, _left
    cdef Py_ssize_t _last_size, _last_block_bytes
    cdef list _free_of_last
    cdef public double _waited_s
    cdef public long long _look_ns

    cpdef bint suits(self, Py_ssize_t size_bytes) except -1
    cpdef bint has_room(self, Py_ssize_t size_bytes) except -1
    @cython.locals(block=Block)
    cpdef array(self, tuple shape, dtype, Py_ssize_t size_bytes)
    @cython.locals(block=Block)
    cpdef found(self, payload, value)
    @cython.locals(block=Block)
    cpdef _find(self, payload, view)
    @cython.locals(block=Block)
    cpdef Block whole(self, array, Py_ssize_t size_bytes)
    cpdef copied(self, payload)
    @cython.locals(block=Block)
    cpdef Block filled(self, array, Py_ssize_t size_bytes)
    cdef Py_ssize_t _rounded(self, Py_ssize_t size_bytes) except -1
    @cython.locals(arena=Arena, fresh=Py_ssize_t, made=Py_ssize_t, block=Block, block_bytes=Py_ssize_t, free=list, slot=tuple, offset=Py_ssize_t)
    cpdef Block lend(self, Py_ssize_t size_bytes)
    @cython.locals(arena=Arena, slot=tuple)
    cdef _collect(self)
    @cython.locals(arena=Arena)
    cpdef bint can_share(self, Block block) except -1
    cpdef long long open_loan(self, Block block) except -1
    cpdef cancel_loan(self, long long number)
    @cython.locals(number='long long')
    cpdef take_back(self, list loans)
    cdef _bound_again(self)


cdef Py_ssize_t _large(Py_ssize_t size_bytes) except -1
cpdef Py_ssize_t rounded(Py_ssize_t size_bytes) except -1
