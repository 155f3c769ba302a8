"""The types with which handlers.py is compiled."""

import cython

from clients.connection.driver cimport Driver
from clients.reading.messages cimport Message
from clients.connection.signals cimport Signal
from clients.reading.subscription_state cimport SubscriptionState


cdef class Handlers:
    cdef public Driver driver
    cdef public set streams
    cdef public dict _handlers
    cdef Signal _work, _turn
    cdef dict _due
    cdef set _in_order, _threads
    cdef Py_ssize_t _aside
    cdef bint _stopping
    cdef object _hold

    cpdef _add_due(self, what)
    cdef _next(self)
    @cython.locals(message=Message)
    cdef _turn_of(self, SubscriptionState due)
    cdef call(self, SubscriptionState subscription, handler, Message message)


cdef class _Turn:
    cdef Handlers _handlers
    cdef SubscriptionState _subscription
    cdef object _handler
    cdef Message _message


cpdef settle_handled(Message message, outcome)
