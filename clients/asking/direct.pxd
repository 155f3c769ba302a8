"""The types with which direct.py is compiled."""

import cython

from broker.clock cimport monotonic_ns, wall_ns
from clients.connection.core cimport Core, try_publish
from clients.connection.driver cimport Driver
from clients.connection.pump cimport seconds
from clients.asking.exchanges cimport Exchange, Request
from clients.reading.messages cimport Message
from clients.publishing.outbound cimport Outbound
from clients.asking.requests cimport PendingRequest


cdef int _BYTES, _LAST


cdef bint _is_small(tuple encoded) except -1
@cython.locals(message=Outbound)
cdef Outbound _small(topic, lane, tuple encoded)
@cython.locals(core=Core, pending=PendingRequest)
cdef _ask(Driver driver, Outbound message, int lane, timeout_s)
@cython.locals(exchange=Exchange, outbound=Outbound)
cpdef reply(Driver driver, Message message, answer)
@cython.locals(core=Core)
cdef bint _answer(Driver driver, Exchange exchange, Outbound outbound) except -1
