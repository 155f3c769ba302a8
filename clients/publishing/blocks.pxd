"""The types with which blocks.py is compiled."""

import cython

from libc.stdint cimport uintptr_t

from broker.transport.held cimport Held
from clients.connection.signals cimport Signal


cdef class Arena:
    cdef public object number, memory, mapped, name
    cdef public Py_ssize_t block_bytes, blocks, lent, made_bytes
    cdef public uintptr_t address
    cdef public Signal answered
    cdef public bint used, gone
    cdef public list free


cdef class Block(Held):
    cdef public Arena arena
    cdef public Py_ssize_t offset
    cdef public bint given_away
    cdef object _over
    cdef tuple _slot

    cpdef view(self, Py_ssize_t size_bytes)
    cpdef array(self, tuple shape, dtype)
    cpdef give_away(self, array)


@cython.locals(block=Block, arena=Arena, offset=Py_ssize_t)
cpdef Block block_in(tuple slot, Py_ssize_t size_bytes, over)
@cython.locals(base=object)
cpdef Block block_of(array)
