"""The types with which incoming.py is compiled."""

import cython

from broker.protocol.frames cimport Frame
from broker.protocol.pool cimport BufferPool
from broker.protocol.session cimport Session
from clients.reading.latencies cimport Latencies
from clients.reading.leases cimport Leases
from clients.reading.messages cimport Message, Publication
from clients.reading.subscription_state cimport SubscriptionState


cdef int _BATCH, _CHUNKED, _TRACKED, _SHARED, _LAST, _CHUNK


cdef class _Assembly:
    cdef public Py_ssize_t arrived_bytes
    cdef public Frame frame
    cdef public object memory
    cdef public SubscriptionState subscription


cdef class Incoming:
    cdef public Session session
    cdef public dict subscriptions
    cdef public BufferPool pool
    cdef public Leases leases
    cdef public Latencies latencies
    cdef object _reply, _on_reply, _settle, _on_reply_aborted, _life
    cdef dict _publications, _assemblies
    cdef SubscriptionState _inbox, _last_subscription
    cdef unsigned int _last_target, _last_number
    cdef Publication _last_publication
    cdef public Py_ssize_t assembled

    @cython.locals(subscription=SubscriptionState, flags=int)
    cpdef deliver(self, Frame frame)
    @cython.locals(message=Message)
    cpdef passed(self, SubscriptionState subscription, Frame frame, publication)
    cdef _open_batch(self, SubscriptionState subscription, Frame frame, publication)
    @cython.locals(publication=Publication)
    cpdef Publication publication(self, Frame frame)
    @cython.locals(message=Message, publication=Publication)
    cdef _complete(self, SubscriptionState subscription, Frame frame)
    cdef _hand_out(self, SubscriptionState subscription, Message message)
    @cython.locals(
        size=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t, last=bint, assembly=_Assembly, subscription=SubscriptionState
    )
    cpdef chunk(self, Frame frame)
    @cython.locals(assembly=_Assembly, start=Py_ssize_t)
    cpdef allocate(self, Frame frame, Py_ssize_t size_bytes)
    cpdef bint give_credit(self, SubscriptionState subscription) except -1
