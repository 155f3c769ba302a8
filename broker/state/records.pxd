"""The types with which records.py is compiled."""

import cython

from broker.protocol.session cimport Session


cdef class Ready:
    cdef public list records

    cpdef add(self, SessionRecord record)
    @cython.locals(record=SessionRecord)
    cpdef list take(self)


cdef class SessionRecord:
    cdef public object id, identity, rights, tenant, shares, bell, bell_identity
    cdef public object last_publisher
    cdef public bint is_ready
    cdef public int lines
    cdef public long long renumbered
    cdef public Session session
    cdef public str inbox, peer, name, host
    cdef public long long opened_ns
    cdef public object process
    cdef public dict publishers, streams, subscriptions, announced
    cdef public list leaving
    cdef public tuple resuming
    cdef public set groups
