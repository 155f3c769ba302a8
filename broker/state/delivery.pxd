"""The types with which delivery.py is compiled."""

import cython

from broker.protocol.frames cimport encode, pack_header, payload_bytes
from broker.protocol.session cimport Session
from broker.state.losses cimport DropNotice, tell_gap
from broker.state.records cimport Ready, SessionRecord
from broker.topics.messages cimport Assignment, Chunk, Message, Stream
from broker.topics.queues cimport Queue


cdef Py_ssize_t _HEADER_BYTES, _BEGUN_WITH_BYTES_MAX
cdef object _BLOCK
cdef int _DELIVER, _CHUNK, _BATCH, _CHUNKED, _SHARED, _LAST, _KEPT_FLAGS


cdef class Subscription:
    cdef public SessionRecord session
    cdef public Session conversation
    cdef public unsigned int number
    cdef public Queue queue
    cdef public str filter, queue_group
    cdef public bint responder
    cdef public object flush, unblock, lost, worker, rules
    cdef public dict sources, blocking
    cdef public DropNotice notice
    cdef LaneSource _newest
    cdef Ready _ready
    cdef public long long delivered, evicted

    @cython.locals(source=LaneSource, session=Session, queue=Queue, arriving=bint, short=bint, stream=Stream)
    cpdef offer(self, Message message)
    @cython.locals(queue=Queue)
    cpdef passed(self, Message message)
    cpdef tell_dropped(self)
    cpdef grant(self, long long messages, long long size_bytes)
    cpdef refund(self, long long messages, long long size_bytes)
    @cython.locals(source=LaneSource)
    cdef _restore(self, long long messages, long long size_bytes)


cdef class LaneSource:
    cdef public Subscription subscription
    cdef public int lane
    cdef public bint attached
    cdef public Message message
    cdef Chunk _chunk
    cdef long long _chunk_sent_bytes, _sent_bytes
    cdef unsigned int _stream_number, _publication
    cdef bint _given_up
    cdef str _topic, _sender
    cdef long long _renumbered

    cpdef attach(self)
    cpdef resume(self)
    cpdef Py_ssize_t pull(self, list buffers) except -1
    @cython.locals(subscription=Subscription, queue=Queue, message=Message, size=Py_ssize_t)
    cdef Py_ssize_t _next_message(self, list buffers) except -1
    @cython.locals(
        subscription=Subscription, queue=Queue, session=SessionRecord, size=Py_ssize_t, flags=int,
        count=cython.longlong, stream_number='unsigned int', body=bytes, body_bytes=Py_ssize_t,
        payload_size=Py_ssize_t, assignment=Assignment, publication='unsigned int',
    )
    cpdef Py_ssize_t send(self, Message message, list buffers) except -1
    @cython.locals(
        size=Py_ssize_t, start='long long', last=bint, flags=int, stream=Stream, chunk=Chunk, following=Chunk
    )
    cdef Py_ssize_t _next_chunk(self, Message message, list buffers) except -1
    cdef Py_ssize_t _abort(self, Message message, str reason, list buffers) except -1
