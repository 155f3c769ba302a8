"""The types with which subscription_state.py is compiled."""

import cython

from clients.reading.messages cimport Message
from clients.reading.seen cimport Seen
from clients.connection.signals cimport Signal


cdef class SubscriptionState(Signal):
    cdef public bint asked, credit_due, evicts, has_max_lag, is_latest, is_special
    cdef public Py_ssize_t pending, readers
    cdef public object closed, device, number, on_message, reader, what, wishes
    cdef public Seen seen
    cdef public dict drops_untold
    cdef public long long held_bytes
    cdef public long long _owed_bytes, _owed_messages, began_ns
    cdef long long _bytes_threshold, _queue_bytes, _queue_messages, _threshold
    cdef long long _dropped_before, _dropped_here, _dropped_there, _gaps_told
    cdef dict _gaps_ahead, _gaps_evicted, _gaps_skipped, _recent
    cdef tuple _lanes
    cdef Message _alone

    cpdef bint has_room(self) except -1

    @cython.locals(message=Message, size=Py_ssize_t)
    cpdef take_plain(self)

    @cython.locals(message=Message, size=Py_ssize_t)
    cpdef take(self)
    cpdef ask(self)

    cpdef append(self, Message message)
    cpdef extend(self, list messages)
    cdef _join(self)
    cdef _arrived(self)
