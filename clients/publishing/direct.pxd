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


cdef object _SENT, _BATCH_OPENED
cdef bint _UNBROKEN


@cython.locals(core=Core, outgoing=Outgoing)
cpdef bint publish(
    Driver driver, topic, int lane, int content, bytes payload, bint batched, bint urgent
) except -1


@cython.locals(signal=Signal, stream=StreamSource)
cpdef bint publish_large(Driver driver, Outbound message, timeout_s) except -1
