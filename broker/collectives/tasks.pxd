"""The types with which tasks.py is compiled."""

import cython

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free


cdef extern from "broker/collectives/interrupts.h" nogil:
    int tb_interrupted()


cdef extern from "broker/collectives/interrupts.h":
    int tb_raise() except -1


cdef extern from "broker/collectives/kernels.h" nogil:
    ctypedef void (*tb_reduce)(void *, const void *const *, int, size_t, int, int, void *const *)
    tb_reduce tb_reduce_kernel(int op, int dtype)


cdef extern from "broker/collectives/turns.h" nogil:
    ctypedef struct tb_claim:
        uint32_t bytes
        unsigned char data[508]

    ctypedef struct tb_record:
        tb_claim claims[64]

    ctypedef struct tb_piece:
        unsigned char *data
        size_t start
        size_t bytes

    ctypedef struct tb_shared:
        uint64_t place
        unsigned char *const *bases
        size_t offset

    ctypedef struct tb_task:
        int kind
        int schedule
        tb_reduce kernel
        int divisor
        int root
        int impossible
        size_t item_bytes
        size_t bytes
        const void *source
        void *target
        const tb_piece *sources
        const tb_piece *targets
        int source_count
        int target_count
        tb_shared shared_source
        tb_shared shared_target
        size_t target_bytes
        int scratch
        int priority
        const void *claim
        uint32_t claim_bytes
        uint64_t timeout_ns
        int (*interrupt)()
        int status
        uint64_t sequence
        uint64_t positions
        uint64_t failed_timeout_ns
        uint64_t ended_ns
        const tb_record *record

    ctypedef struct tb_turns:
        pass

    int tb_turns_run(tb_turns *turns, tb_task *task)
    int tb_turns_submit(tb_turns *turns, tb_task *task)
    void tb_turns_cancel(tb_turns *turns, tb_task *task)
    int tb_turns_wait(tb_turns *turns, tb_task *task, uint64_t timeout_ns)
    uint64_t tb_now_ns()


cdef class Plan:
    cdef readonly bytes claim
    cdef readonly Py_ssize_t array_bytes
    cdef readonly Py_ssize_t result_bytes
    cdef tb_task _task


@cython.no_gc_clear
cdef class Pieces:
    cdef tb_piece *_pieces
    cdef Py_buffer *_buffers
    cdef readonly int count
    cdef readonly size_t total_bytes
    @cython.locals(start=size_t)
    cdef int _hold(self, object arrays, int flags) except -1


@cython.no_gc_clear
cdef class Window:
    cdef readonly Py_ssize_t size_bytes
    cdef uint64_t _number
    cdef int _positions
    cdef int _position
    cdef unsigned char **_bases
    cdef object _holder
    cdef tb_task *_writer


# The engine's thread may use what a Task or an engine refers to until that is deallocated.
@cython.no_gc_clear
cdef class Task:
    cdef tb_task _task
    cdef Plan _plan
    cdef Py_buffer _source
    cdef Py_buffer _target
    cdef bint _has_source
    cdef bint _has_target
    cdef Pieces _sources
    cdef Pieces _targets
    cdef Window _source_window
    cdef Window _target_window
    @cython.locals(inside=size_t)
    cdef int _place(self, Window window, tb_shared *shared, const void *array, size_t array_bytes) except -1
    cpdef int share(self, Window source, Window target) except -1
    @cython.locals(pieces=Pieces)
    cdef Pieces _adopt(self, object arrays, Py_ssize_t expected, bint writable)
    cpdef claims(self)


@cython.no_gc_clear
cdef class Turns:
    cdef tb_turns *_turns
    cdef list _submitted
    cdef list _runs
    cdef int _admit(self, Task task) except -1
    cpdef int run(self, Task task) except -1
    cpdef submit(self, Task task)
    cpdef cancel(self, Task task)
    cpdef bint cancel_all(self)
    @cython.locals(end_ns=uint64_t, now_ns=uint64_t, left_ns=uint64_t, slice_ns=uint64_t)
    cpdef int wait(self, Task task, double timeout_s) except -1
