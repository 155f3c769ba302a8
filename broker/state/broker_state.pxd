"""The types with which broker_state.py is compiled."""

import cython

from broker.protocol.frames cimport Frame
from broker.protocol.pool cimport BufferPool
from broker.state.following cimport Following
from broker.state.publishing cimport Publishing
from broker.state.records cimport Ready, SessionRecord
from broker.state.topics cimport Router


cdef int _PUBLISH, _CHUNK
cdef object _OPEN, _AWAIT_HELLO


cdef class BrokerState:
    cdef public object arrivals, watermark, settings, local_path, addresses, sessions_opened, sharing, viewer
    cdef public object authority, own, ended, wake, quotas, latencies, on_tenant, observing, _group_numbers
    cdef public long long now_ns
    cdef public dict sessions, tenants
    cdef public Ready ready
    cdef public bint draining
    cdef public Router router
    cdef public Following following
    cdef public Publishing publishing
    cdef public BufferPool pool
    cdef object _scratch
    cdef dict _handlers
    cdef object __weakref__

    @cython.locals(frame=Frame, kind=int, publishing=Publishing)
    cpdef receive(self, SessionRecord record, received, long long now_ns)
    cpdef bint has_more(self) except -1
    cpdef list take_ready(self)
