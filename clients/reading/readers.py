"""Whether a program has anything left with which it could read a subscription.

One that nobody can read any more would go on to be filled, and hold its publishers back for ever: of a `with` that an
exception came before, of a name that is given to another one, as when a cell of a notebook runs again.

The end of a Reader is noticed by a weak reference (SubscriptionState.keep), on any thread, also on one that holds the
client's lock. Neither what makes one nor what follows its end is a function that is not compiled: a signal's exception
comes where such a function begins, and nobody would ever end the subscription.
"""

from __future__ import annotations


class Reader:
    """What a subscription without a handler keeps, and each job that was taken of it. With the last of them it goes."""

    __slots__ = ("__weakref__",)
