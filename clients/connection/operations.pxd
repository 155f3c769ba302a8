"""The types with which operations.py is compiled."""

import cython

from clients.connection.core cimport Core
from clients.reading.subscription_state cimport SubscriptionState


cpdef take(driver, Core core, SubscriptionState subscription)

@cython.locals(core=Core)
cpdef follow_up(driver, done)
