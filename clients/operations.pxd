"""The types with which operations.py is compiled."""

import cython

from clients.core cimport Core
from clients.subscription_state cimport SubscriptionState


@cython.locals(core=Core)
cpdef take(driver, SubscriptionState subscription)

@cython.locals(core=Core)
cpdef follow_up(driver, done)
