"""The types with which session.py is compiled."""

import cython

from broker.protocol.frames cimport Frame, Header
from broker.protocol.outbox cimport Outbox
from broker.protocol.receiver cimport CallingReceiver, Receiver
from broker.wires cimport CallingWire, Wire

cdef Py_ssize_t _HEADER_BYTES, _PLACED_BYTES_MIN
cdef unsigned long long _MESSAGE_BYTES_MAX
cdef object _AWAIT_HELLO, _OPEN, _CLOSING, _CLOSED, _NO_BYTES
cdef bytes _EMPTY
cdef int _KIND_MAX, _LANES, _PING, _PONG, _CLOSE, _CHUNK, _LAST


cdef class Session:
    cdef public object phase, failure, refusal, passage
    cdef public bint is_client
    cdef bint _amid
    cdef public Outbox outbox
    cdef public long long opened_ns, last_received_ns, received_bytes, sent_bytes
    cdef public long long heartbeat_interval_ns, heartbeat_timeout_ns
    cdef public list unsent
    cdef public Py_ssize_t unsent_bytes
    cdef public Frame _farewell
    cdef object _allocate, _hello_timeout_s, _placed_rest, _scratch
    cdef list _whole
    cdef public bytes _rest
    cdef Frame _placed
    cdef bint _deaf
    cdef public unsigned int _last_stream
    cdef long long _last_ping_ns
    cdef unsigned char *_data
    cdef public object lend

    @cython.locals(placed=Frame)
    cpdef list receive_buffers(self)

    @cython.locals(placed=Frame, rest=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t, receiver=Receiver)
    cpdef received(self, Py_ssize_t size, long long now_ns, deliver)

    @cython.locals(
        frame=Frame, body_bytes=Py_ssize_t, size=Py_ssize_t, body_start=Py_ssize_t, payload_start=Py_ssize_t,
        frame_end=Py_ssize_t, have=Py_ssize_t, kind=int, lane=int, placed=bint, strange=bint,
    )
    cdef Py_ssize_t _read_frames(self, Py_ssize_t start, Py_ssize_t end, long long now_ns, Receiver receiver) except -1

    @cython.locals(header='const Header *')
    cdef inline (Py_ssize_t, Py_ssize_t) _read_header(self, Frame frame, Py_ssize_t start) noexcept

    cdef inline bytes _copied(self, Py_ssize_t start, Py_ssize_t size)

    cdef _take(self, Frame frame, long long now_ns, Receiver receiver)
    cpdef bint has_unsent(self) except -1
    cpdef check_queued(self)
    cpdef put(self, Frame frame)
    cpdef attach(self, source, int lane)
    cpdef unsigned int next_stream(self)
    cpdef list to_send(self, Py_ssize_t budget_bytes=*)
    cpdef bint sent(self, Py_ssize_t size) except -1
    @cython.locals(buffers=list, size=Py_ssize_t, wire=Wire)
    cpdef bint flush(self, send) except -1


cdef unsigned char *_address(unsigned char[::1] scratch) except NULL
