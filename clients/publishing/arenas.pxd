"""The types with which arenas.py is compiled."""

import cython

from clients.connection.signals cimport Signal


cdef class Arena:
    cdef public object number, memory, mapped, name
    cdef public Py_ssize_t block_bytes, blocks, lent, made_bytes
    cdef public Signal answered
    cdef public bint used, gone
    cdef public dict given


cdef class Block:
    cdef public Arena arena
    cdef public Py_ssize_t offset
    cdef object _over
    cdef object __weakref__

    cpdef view(self, Py_ssize_t size_bytes)


cdef class Arenas:
    cdef public bint enabled, _full, _in_vain
    cdef public Py_ssize_t lent_bytes, _held_bytes, _ahead_bytes
    cdef public Signal came_back
    cdef public object _lock, _last_arena, _last_loan, _last_given
    cdef public dict _arenas, _free, _lent
    cdef public set _untold
    cdef public object _over, _left
    cdef public double _waited_s
    cdef public long long _look_ns

    cpdef bint suits(self, Py_ssize_t size_bytes) except -1
    cpdef bint has_room(self, Py_ssize_t size_bytes) except -1
    @cython.locals(block=Block)
    cpdef array(self, tuple shape, dtype, Py_ssize_t size_bytes)
    cpdef found(self, payload, value)
    cpdef copied(self, payload)
    @cython.locals(arena=Arena, fresh=Py_ssize_t, made=Py_ssize_t, block=Block)
    cpdef lend(self, Py_ssize_t size_bytes)
    @cython.locals(arena=Arena)
    cdef _collect(self)
    @cython.locals(arena=Arena)
    cpdef bint can_share(self, place) except -1
    cpdef take_back(self, list loans)
    cdef _bound_again(self)


cdef Py_ssize_t _large(Py_ssize_t size_bytes) except -1
cpdef Py_ssize_t rounded(Py_ssize_t size_bytes) except -1
