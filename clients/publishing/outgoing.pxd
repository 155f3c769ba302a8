"""The types with which outgoing.py is compiled."""

import cython

from broker.protocol.batches cimport Batch
from broker.protocol.frames cimport Frame, pack_header
from broker.protocol.places cimport renamed
from broker.protocol.session cimport Session
from clients.publishing.line_out cimport LineOut, LinesOut
from clients.publishing.outgoing_topic cimport OutgoingTopic
from clients.connection.signals cimport Signal
from clients.publishing.streaming cimport StreamSource, StreamsOut


cdef Py_ssize_t _HEADER_BYTES, _BATCHED_BYTES_MAX, _ENTRY_BODY_BYTES_MAX
cdef long long _BATCH_GAP_NS
cdef object _SENT
cdef int _PUBLISH, _CONTROL, _DEFAULT, _BATCH, _ACKNOWLEDGE, _SHARED, _LOW_PARTS, _LOW_PARTS_SHARED


cdef class Outgoing:
    cdef public Session session
    cdef public dict topics, filling
    cdef public list open_batches
    cdef public OutgoingTopic last_sent
    cdef public long long shortest_window_ns, unconfirmed
    cdef public Signal link_room
    cdef public StreamsOut streams
    cdef public LinesOut lines
    cdef list _by_number
    cdef long long _window_messages, _window_bytes

    @cython.locals(session=Session, topic=OutgoingTopic, size=Py_ssize_t)
    cpdef publish_plain(
        self, name, int lane, int content, bytes payload, long long now_ns, long long wall_ns, bint urgent
    )
    @cython.locals(line=LineOut, low=bint, parts=int)
    cdef bint _on_line(
        self, OutgoingTopic topic, bytes header, bytes body, bytes payload, bint acknowledge, long long shared_bytes=*
    ) except -1
    @cython.locals(session=Session)
    cpdef publish_small(self, OutgoingTopic topic, Frame frame, charged_bytes=*)
    @cython.locals(line=LineOut)
    cpdef publish_shared(self, OutgoingTopic topic, Frame frame, long long charged_bytes, unsigned int name)
    cpdef bint is_low(self, OutgoingTopic topic) except -1
    @cython.locals(line=LineOut)
    cdef bint can_place(self, OutgoingTopic topic, long long size_bytes) except -1
    @cython.locals(taken_bytes='long long', header=bytes)
    cdef bint publish_place(
        self, OutgoingTopic topic, int flags, int content, unsigned int reference, bytes body, bytes place,
        long long size_bytes, long long charged_bytes, long long time_ns
    ) except -1
    @cython.locals(session=Session, size=Py_ssize_t, body_bytes=Py_ssize_t, header=bytes, line=LineOut)
    cpdef publish_one(
        self, OutgoingTopic topic, int flags, int lane, int content, unsigned int reference, int priority,
        unsigned long long request, long long wall_ns, bytes body, bytes payload
    )
    @cython.locals(topic=OutgoingTopic, stream=StreamSource)
    cpdef granted(self, Frame frame)
    cdef OutgoingTopic _named(self, Frame frame)
    cpdef has_left(self, long long now_ns)
    @cython.locals(gap_ns='long long')
    cpdef offer_to_batch(
        self, OutgoingTopic topic, int content, bytes body, bytes payload, long long time_ns, long long now_ns
    )
    @cython.locals(batch=Batch, opened=bint)
    cdef _add_to_batch(
        self, OutgoingTopic topic, int content, bytes body, bytes payload, long long time_ns, long long now_ns
    )
    @cython.locals(batch=Batch)
    cpdef send_batch(self, OutgoingTopic topic)
    @cython.locals(session=Session)
    cpdef StreamSource start_stream(self, OutgoingTopic topic, Frame opening, payload)
    cpdef link_drained(self)
