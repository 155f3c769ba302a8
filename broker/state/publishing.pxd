"""The types with which publishing.py is compiled."""

import cython

from broker.protocol.frames cimport Frame, payload_bytes
from broker.protocol.places cimport charge
from broker.state.records cimport SessionRecord
from broker.state.sharing cimport borrowed
from broker.state.requests cimport Requests
from broker.state.topics cimport Publisher, Router, TopicRecord
from broker.topics.messages cimport Chunk, Message, Stream


cdef int _BATCH, _CHUNKED, _REQUEST, _ACKNOWLEDGE, _LAST, _SHARED, _TRACED, _CONTROL, _DEFAULT, _ONE_BY_ONE
cdef Py_ssize_t _PLACED_BYTES_MIN


cdef class Publishing:
    cdef public Router router
    cdef public Requests requests
    cdef public object pressure, flush, authority, flow, consider_line, traced
    cdef public long long shared_bytes
    cdef public long long window_messages, window_bytes
    cdef public bint places, pushing_back
    cdef public object refusal
    cdef object _room
    cdef long long _half_messages, _half_bytes

    @cython.locals(
        publisher=Publisher, topic=TopicRecord, message=Message, flags=int, lane=int, count=cython.longlong,
        total_bytes=cython.longlong, taken_bytes=cython.longlong, body=bytes, stream=Stream, first=Chunk,
    )
    cpdef publish(self, SessionRecord session, Frame frame)
    @cython.locals(topic=TopicRecord, stream=Stream)
    cdef bint _follow_flags(
        self, SessionRecord session, Publisher publisher, Frame frame, Message message, int flags
    ) except -1
    @cython.locals(
        publisher=Publisher, message=Message, arrived=cython.longlong, expected=cython.longlong, size=Py_ssize_t,
        stream=Stream, complete=bint,
    )
    cpdef chunk(self, SessionRecord session, Frame frame)
    cdef Stream _open(self, SessionRecord session, Publisher publisher, Frame frame)
    cdef _half_used(self, SessionRecord session, Publisher publisher)
    cpdef top_up(self, SessionRecord session, Publisher publisher)
