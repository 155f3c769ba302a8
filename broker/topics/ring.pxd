"""The types with which ring.py is compiled."""

import cython

from broker.topics.messages cimport Message


cdef Py_ssize_t _FEW
cdef long long _RETAINED_BYTES_MAX


cdef class Ring:
    cdef public long long messages_max, bytes_max, held_messages, held_bytes
    cdef public long long next_sequence
    cdef public bint keeps_last
    cdef object _messages
    cdef tuple _arriving
    cdef long long _arriving_bytes

    @cython.locals(before=cython.longlong)
    cpdef long long append(self, Message message) except? -1

    @cython.locals(before=cython.longlong)
    cdef long long _append_arriving(self, Message message) except? -1

    @cython.locals(before=cython.longlong, arriving=cython.longlong)
    cpdef long long finish(self, Message message) except? -1

    cpdef long long discard(self, Message message) except? -1

    cdef _many(self)

    @cython.locals(least=Py_ssize_t, count=Py_ssize_t)
    cdef _let_go(self)

    @cython.locals(oldest=Message)
    cdef _drop_oldest(self)
