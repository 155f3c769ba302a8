"""The types with which alike.py is compiled."""

import cython

from broker.clock cimport wall_ns
from broker.protocol.places cimport packed_place
from clients.connection.core cimport Core
from clients.connection.driver cimport Driver
from clients.publishing.arenas cimport Arenas
from clients.publishing.blocks cimport Block, block_of
from clients.publishing.outgoing cimport Outgoing
from clients.publishing.outgoing_topic cimport OutgoingTopic
from clients.publishing.sharing cimport make_room


cdef int _TENSOR
cdef object _DEFAULT_NAME


cdef class Alike:
    cdef object _dtype, _shape
    cdef bytes body
    cdef long long size_bytes, charge
    cdef bint copies

    cdef bint fits(self, array) except -1


@cython.locals(
    core=Core, outgoing=Outgoing, arenas=Arenas, topic=OutgoingTopic, alike=Alike, block=Block, name='unsigned int',
    loan='long long', given=bint
)
cpdef bint publish_alike(Driver driver, topic_name, lane, array) except -1
cdef Alike _like(array)
