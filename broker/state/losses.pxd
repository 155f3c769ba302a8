"""The types with which losses.py is compiled."""

from broker.protocol.frames cimport encode
from broker.topics.messages cimport Message
from broker.topics.queues cimport Queue


cdef class DropNotice:
    cdef unsigned int _subscription
    cdef Queue _queue
    cdef public bint attached
    cdef public long long told

    cpdef Py_ssize_t pull(self, list buffers) except -1


cpdef Py_ssize_t tell_gap(
    Queue queue, unsigned int subscription, Message message, unsigned int publication, list buffers
) except -1
