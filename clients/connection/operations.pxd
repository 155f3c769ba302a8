"""The types with which operations.py is compiled."""

import cython

from clients.connection.core cimport Core
from clients.reading.subscription_state cimport SubscriptionState


@cython.locals(core=Core)
cpdef take(driver, SubscriptionState subscription)

@cython.locals(core=Core)
cpdef follow_up(driver, done)
