"""The types with which ring.py is compiled."""

import cython

from broker.topics.messages cimport Message


cdef class Ring:
    cdef public long long messages_max, bytes_max, held_messages, held_bytes
    cdef public long long next_sequence
    cdef public bint keeps_last
    cdef object _messages
    cdef tuple _arriving

    @cython.locals(before=cython.longlong)
    cpdef long long append(self, Message message) except? -1

    cdef _many(self)

    @cython.locals(least=Py_ssize_t, count=Py_ssize_t)
    cdef _let_go(self)

    @cython.locals(oldest=Message)
    cdef _drop_oldest(self)
