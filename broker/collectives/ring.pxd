"""The types with which ring.py is compiled."""

import cython

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t

from broker.collectives.tasks cimport Task as TypedTask
from broker.collectives.tasks cimport Turns, tb_now_ns, tb_task, tb_turns


cdef extern from "broker/collectives/turns.h" nogil:
    pass


cdef extern from "broker/collectives/undo.h" nogil:
    pass


cdef extern from "broker/collectives/ring_engine.h" nogil:
    ctypedef struct tb_link_log:
        pass

    ctypedef struct tb_link_standing:
        uint64_t begun
        uint64_t seen
        uint64_t waits_for
        uint64_t received_bytes
        int phase

    ctypedef struct tb_link_told:
        uint64_t sequence
        uint64_t began_ns
        uint64_t ended_ns
        uint64_t positions
        uint64_t timeout_ns
        int status
        uint32_t claim_bytes
        unsigned char claim[508]

    void tb_link_log_thin(tb_link_log *log, int thinning)
    void tb_link_log_standing(tb_link_log *log, tb_link_standing *standing)
    int tb_link_log_read(tb_link_log *log, int place, tb_link_told *told)

    ctypedef struct tb_ring:
        tb_turns turns
        uint64_t committed
        tb_link_log log

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
    @cython.locals(standing=tb_link_standing, told=tb_link_told, place=int, wanted=uint64_t, bits=int)
    cpdef glance(self, after, thinning)
