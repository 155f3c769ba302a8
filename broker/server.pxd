"""The types with which server.py is compiled."""

import cython

from broker.histograms cimport Histogram
from broker.clock cimport monotonic_ns
from broker.protocol.receiver cimport Receiver
from broker.protocol.session cimport Session
from broker.state.broker_state cimport BrokerState
from broker.state.records cimport SessionRecord
from broker.wires cimport Wire


cdef int _UNMEASURED, _READS_AT_ONCE
cdef object _OPEN, _CLOSED


cdef class _Heard(Receiver):
    cdef BrokerState _state
    cdef SessionRecord _record

    cpdef receive(self, received, long long now_ns)


cdef class _Link:
    cdef public object connection, deliver
    cdef public Wire wire
    cdef public SessionRecord record
    cdef public bint one_signal, writing
    cdef public long long closing_since_ns


cdef class Server:
    cdef public object config, admission, started_ns, idle, busy
    cdef public object state
    cdef public list listeners
    cdef public Histogram turns
    cdef bint _accept_paused, _going_on, _measures
    cdef long long _turn
    cdef public dict _links
    cdef public object _reading, _strangers
    cdef object _endings, _hangups, _loop, _ticking, _scarcity, _seat

    @cython.locals(began_ns='long long')
    cpdef _readable(self, _Link link)
    @cython.locals(session=Session, size=Py_ssize_t, room=Py_ssize_t, _=int, buffers=list)
    cdef _read(self, _Link link)
    @cython.locals(record=SessionRecord, link=_Link, state=BrokerState)
    cpdef _run(self)
    @cython.locals(session=Session)
    cdef _flush(self, _Link link)
    cpdef _writable(self, _Link link)
    cpdef _close(self, _Link link, bint abort=*)
