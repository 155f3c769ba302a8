"""The types with which lines.py is compiled."""

import cython

from broker.protocol.frames cimport Frame
from broker.protocol.line cimport Reader, check_entry
from clients.reading.incoming cimport Incoming
from clients.reading.leases cimport HeldOnLine
from clients.reading.subscription_state cimport SubscriptionState


cdef int _TAKEN, _PUBLISH, _DEFAULT, _BATCH, _SHARED, _ALLOWED, _BATCH_MESSAGES_MAX, _ENTRIES_AT_ONCE


cdef class LineIn:
    cdef public unsigned int number
    cdef public Reader reader
    cdef public HeldOnLine leases
    cdef public object publication
    cdef public list subscriptions
    cdef public long long sequence

    @cython.locals(subscription=SubscriptionState)
    cpdef bint has_room(self) except -1


cdef class Lines:
    cdef public Py_ssize_t count
    cdef public Incoming incoming
    cdef list _lines

    @cython.locals(line=LineIn, frame=Frame, took=bint, _=int)
    cpdef bint read(self, long long now_ns) except -1
    @cython.locals(count=int)
    cdef _hand_out(self, LineIn line, Frame frame)
    @cython.locals(line=LineIn)
    cpdef bint has_more(self) except -1
    @cython.locals(line=LineIn)
    cpdef bint sleeps(self) except -1
    @cython.locals(line=LineIn)
    cpdef wakes(self)
