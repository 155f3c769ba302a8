"""The types with which core.py is compiled."""

import cython

from broker.protocol.frames cimport Frame
from broker.protocol.places cimport charge
from broker.protocol.receiver cimport Receiver
from broker.protocol.session cimport Session
from clients.reading.incoming cimport Incoming
from clients.reading.lines cimport Lines
from clients.publishing.outbound cimport Outbound as Leaving  # Under another name, or the module would not have its own.
from clients.publishing.arenas cimport Arenas
from clients.publishing.outgoing cimport Outgoing
from clients.publishing.outgoing_topic cimport OutgoingTopic
from clients.asking.requests cimport PendingRequest, Requests
from clients.connection.signals cimport Signal


cdef int _DELIVER, _CHUNK, _PUBLISH, _TOPIC, _CREDIT, _RESULT
cdef int _CONTROL, _DEFAULT, _REQUEST, _ACKNOWLEDGE, _TRACED, _CHUNKED, _SHARED


cdef class Core(Receiver):
    cdef public str name
    cdef public Session session
    cdef public Requests requests
    cdef public object session_number, closed, responders, places, devices, lost, unread
    cdef public Arenas arenas
    cdef public Signal online
    cdef public Outgoing outgoing
    cdef public Incoming incoming
    cdef public Lines lines
    cdef public object bell
    cdef public int completions
    cdef bint _bell_told
    cdef public dict declarations
    cdef public dict _pendings
    cdef public object _last_reference
    cdef object _last_subscription

    @cython.locals(frame=Frame, kind=int)
    cpdef receive(self, received, long long now_ns)
    cpdef send(self, Frame frame)
    cpdef before_waiting(self)
    cpdef take_back(self)
    cpdef address(self, Leaving message, PendingRequest pending)


@cython.locals(outgoing=Outgoing, topic=OutgoingTopic, lane=int, plain=bint, body=bytes)
cpdef try_publish(Core core, Leaving message, long long now_ns, long long wall_ns)
