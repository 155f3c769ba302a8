"""The types with which reading.py is compiled."""

import cython

from libc.stdint cimport uint32_t, uint64_t, uintptr_t


# The board's files are linked whole, and need its clock.
cdef extern from "broker/collectives/turns.h" nogil:
    uint64_t tb_now_ns()


cdef extern from "broker/collectives/board.h" nogil:
    ctypedef struct tb_standing:
        uint64_t begun
        uint64_t arrived
        uint64_t left
        uint64_t staged
        uint64_t reduced
        uint64_t collected

    ctypedef struct tb_entry:
        uint64_t began_ns
        uint64_t left_ns
        uint32_t claim_bytes
        unsigned char claim[228]

    ctypedef struct tb_claim:
        uint32_t bytes
        unsigned char data[508]

    ctypedef struct tb_record:
        uint64_t positions
        uint64_t timeout_ns
        tb_claim claims[64]

    void tb_read_standing(const void *memory, int position, tb_standing *standing)
    int tb_read_entry(const void *memory, int position, uint64_t sequence, tb_entry *entry)
    uint64_t tb_read_verdict(const void *memory, uint64_t sequence)
    const tb_record *tb_read_record(const void *memory, int author, uint64_t sequence)


cdef class Reader:
    cdef readonly int positions
    cdef object _memory
    cdef const void *_board
    @cython.locals(standing=tb_standing, position=int, total=uint64_t)
    cpdef pulse(self)
    @cython.locals(standing=tb_standing, position=int)
    cpdef list standings(self)
    @cython.locals(found=tb_entry, at=int, wanted=uint64_t)
    cpdef entry(self, position, sequence)
    @cython.locals(wanted=uint64_t, word=uint64_t)
    cpdef verdict(self, sequence)
    @cython.locals(record="const tb_record *", at=int, size=uint32_t, claim=tb_claim, bits=uint64_t)
    cpdef failure(self, author, sequence)
