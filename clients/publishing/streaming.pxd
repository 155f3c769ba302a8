"""The types with which streaming.py is compiled."""

import cython

from broker.buffers cimport Pieces
from broker.protocol.frames cimport Frame, encode, pack_header
from broker.protocol.session cimport Session
from clients.publishing.outgoing_topic cimport OutgoingTopic
from clients.connection.signals cimport Signal


cdef Py_ssize_t _HEADER_BYTES
cdef int _CHUNK, _CONTROL, _LAST


cdef class StreamSource(Signal):
    cdef public Frame opening
    cdef public OutgoingTopic topic
    cdef public unsigned int number
    cdef public bint attached
    cdef public object error
    cdef public int lane
    cdef list _finishing
    cdef Pieces _pieces
    cdef long long _position, _rest

    @cython.locals(topic=OutgoingTopic, charged=bint, size=Py_ssize_t, flags=int)
    cpdef Py_ssize_t pull(self, list buffers) except -1


cdef class StreamsOut:
    cdef public list finishing
    cdef public Signal room
    cdef dict _by_number

    @cython.locals(stream=StreamSource)
    cpdef StreamSource start(self, Session session, OutgoingTopic topic, Frame opening, payload)
    @cython.locals(finishing=list, stream=StreamSource)
    cpdef link_drained(self)
    cdef _end(self, StreamSource stream, error)
