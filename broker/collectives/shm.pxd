"""The types with which shm.py is compiled."""

import cython

from libc.errno cimport EINVAL, errno
from libc.stdint cimport uintptr_t

from broker.collectives.tasks cimport Turns, tb_turns


cdef extern from "broker/collectives/turns.h" nogil:
    pass


cdef extern from "broker/collectives/undo.h" nogil:
    pass


cdef extern from "broker/collectives/board.h" nogil:
    size_t tb_board_bytes(int positions, size_t stage_bytes)
    void tb_board_format(void *memory, size_t bytes, int positions)
    void tb_board_end(void *memory, int positions, int state)


cdef extern from "broker/collectives/engine.h" nogil:
    ctypedef struct tb_engine:
        tb_turns turns

    tb_engine *tb_engine_new(int file, size_t bytes, int positions, int position, int told)
    void tb_engine_close(tb_engine *engine)
    void tb_engine_free(tb_engine *engine)


@cython.no_gc_clear
cdef class Engine(Turns):
    cdef tb_engine *_engine
