"""The types with which census.py is compiled."""

import cython

from broker.state.topics cimport TopicRecord


cdef class Census:
    cdef public long long topics, retained_bytes, held_back
    cdef public list works

    @cython.locals(
        name=str, topic=TopicRecord, own=cython.longlong, published=cython.longlong, published_bytes=cython.longlong,
        refused=cython.longlong, retained_bytes=cython.longlong, held_back=cython.longlong,
    )
    cpdef count(self, dict topics, object totals)
