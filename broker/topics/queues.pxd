"""The types with which queues.py is compiled."""

import cython

from broker.topics.messages cimport Message


cdef int _CONTROL
cdef object _BLOCK, _LATEST, _DROP_OLDEST, _DROP_NEWEST


cdef class Queue:
    cdef public object overflow, gaps, on_loss, max_lag
    cdef public long long messages_max, bytes_max, credit_messages_max, credit_messages, credit_bytes
    cdef public long long waiting_messages, waiting_bytes, dropped
    cdef public long long _control_bytes
    cdef object _split
    cdef dict _recent
    cdef public tuple _lanes

    @cython.locals(waiting=cython.longlong)
    cpdef bint has_room(self, Message message) except -1
    cpdef bint offer(self, Message message) except -1
    cdef _count_in(self, Message message)
    cdef _count_out(self, Message message)
    @cython.locals(message=Message)
    cpdef Message take(self, int lane)
    cpdef grant(self, long long messages, long long size_bytes)
    cpdef Message first(self, int lane)
    cpdef bint has_waiting(self, int lane) except -1
