"""The types with which ring.py is compiled."""

import cython

from libc.errno cimport errno
from libc.stdint cimport uint64_t

from broker.collectives.tasks cimport Task as TypedTask
from broker.collectives.tasks cimport Turns, tb_task, tb_turns


cdef extern from "broker/collectives/turns.h" nogil:
    pass


cdef extern from "broker/collectives/undo.h" nogil:
    pass


cdef extern from "broker/collectives/ring_engine.h" nogil:
    ctypedef struct tb_ring:
        tb_turns turns
        int hosts[64]
        uint64_t committed

    tb_ring *tb_ring_new(const int *files, const int *counts, int positions, int position, int told)
    void tb_ring_end(tb_ring *ring)
    void tb_ring_close(tb_ring *ring)
    void tb_ring_free(tb_ring *ring)
    int tb_ring_settle(tb_ring *ring, tb_task *task, int committed)


@cython.no_gc_clear
cdef class Engine(Turns):
    cdef tb_ring *_ring
    cdef readonly int position
    cdef readonly int positions
    cdef int _admit(self, TypedTask task) except -1
    cpdef int _settle(self, TypedTask task, bint committed) except -1
