"""The types with which subscriptions.py is compiled."""

import cython

from clients.connection.driver cimport Driver
from clients.connection.operations cimport take
from clients.reading.subscription_state cimport SubscriptionState


cdef bint _UNBROKEN


cdef class Subscription:
    cdef public Driver _driver
    cdef public SubscriptionState _state
    cdef object _hold, _reader
    cdef object __weakref__

    @cython.locals(driver=Driver, state=SubscriptionState)
    cpdef next(self, timeout_s=*)
