"""The types with which requests.py is compiled."""

import cython

from clients.reading.messages cimport Message
from clients.connection.signals cimport Signal


cdef class PendingRequest(Signal):
    cdef public object topic, asked, error, replies, sent_on
    cdef public unsigned long long number
    cdef public bint many
    cdef public int lane
    cdef public long long ended
    cdef public list failures
    cdef dict _owed

    cdef bint _settled(self)
    cpdef again(self)
    cpdef fail(self, error)
    cpdef replied(self, Message message)
    cpdef _failed(self, error)
    cpdef _look(self)
    @cython.locals(message=Message)
    cpdef take(self)


cdef class Requests:
    cdef unsigned long long _base
    cdef dict _waiting
    cdef public object abandoned

    @cython.locals(known=PendingRequest)
    cpdef bint forget(self, PendingRequest request, session) except -1
    @cython.locals(request=PendingRequest)
    cpdef replied(self, Message message)
