"""The types with which pump.py is compiled."""

import cython

from broker.clock cimport monotonic_ns
from broker.protocol.session cimport Session
from broker.transport.calls cimport wait_for_either
from broker.wires cimport Wire
from clients.connection.core cimport Core
from clients.connection.locks cimport Condition, Lock
from clients.connection.signals cimport Signal
from clients.connection.wakeup cimport Wakeup
from clients.publishing.outgoing cimport Outgoing
from clients.reading.incoming cimport Incoming
from clients.reading.lines cimport Lines
from clients.reading.looking cimport Looking


cdef int _READABLE, _WRITABLE, _FIRST, _SECOND, _READS_MAX
cdef Py_ssize_t _SHORT_READ_BYTES


cpdef seconds(timeout_s)


cdef class Pump:
    cdef public Core core
    cdef public Lock lock
    cdef public object _link
    cdef Condition _condition
    cdef bint _pumping, _closing, _keeper_watches, _returns
    cdef Py_ssize_t _followers
    cdef double _last_wait
    cdef Session _session
    cdef int _descriptor
    cdef Wakeup _wake
    cdef Looking _looking
    cdef Wire _wire
    cdef object _keeper_wake
    cdef object __weakref__

    cpdef publishes(self)
    cpdef read_arrived(self)
    cpdef block(self, Signal signal, timeout_s, what)
    @cython.locals(outgoing=Outgoing, session=Session)
    cpdef flush(self, bint waits=*)
    cpdef batch_opened(self)
    cpdef wake_waiters(self)
    @cython.locals(session=Session, events=int, lines=Lines, took=bint, began_ns='long long', found=int, woken=bint)
    cdef _pump(self, timeout_s)
    cdef bint _read_lines(self, bint wakes=*) except -1
    cdef _read_all(self, bint ahead=*)
    @cython.locals(size=Py_ssize_t, buffers=list, short=bint, _=int, wire=Wire, incoming=Incoming, assembled=Py_ssize_t)
    cdef _read(self, Session session, bint ahead)
    cpdef _lose(self, error)
