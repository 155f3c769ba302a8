"""The types with which direct.py is compiled."""

import cython

from broker.clock cimport monotonic_ns, wall_ns
from clients.connection.core cimport Core, try_publish
from clients.connection.driver cimport Driver
from clients.connection.signals cimport Signal
from clients.publishing.filling cimport add
from clients.publishing.outbound cimport Outbound
from clients.publishing.outgoing cimport Outgoing
from clients.publishing.streaming cimport StreamSource


cdef object _SENT, _BATCH_OPENED, _DEFAULT_NAME
cdef bint _UNBROKEN
cdef int _DEFAULT
cdef dict _LANES
cdef Py_ssize_t _PLACED_BYTES_MIN


@cython.locals(core=Core, outgoing=Outgoing, lane=int, batched=bint)
cpdef bint publish(Driver driver, topic, name, int content, bytes payload, bint urgent) except -1


@cython.locals(
    core=Core, signal=Signal, stream=StreamSource, message=Outbound, size_bytes=Py_ssize_t, began_ns='long long', now_ns='long long'
)
cpdef bint publish_large(Driver driver, topic, name, encoded, timeout_s) except -1
cdef _wait(Driver driver, Outbound message, Signal signal, left_s, timeout_s)
