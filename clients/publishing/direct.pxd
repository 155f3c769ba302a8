"""The types with which direct.py is compiled."""

import cython

from broker.clock cimport monotonic_ns, wall_ns
from clients.connection.core cimport Core
from clients.connection.driver cimport Driver
from clients.publishing.filling cimport add
from clients.publishing.outgoing cimport Outgoing


cdef object _SENT, _BATCH_OPENED
cdef bint _UNBROKEN


@cython.locals(core=Core, outgoing=Outgoing)
cpdef bint publish(
    Driver driver, topic, int lane, int content, bytes payload, bint batched, bint urgent
) except -1
