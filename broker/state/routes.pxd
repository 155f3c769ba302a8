"""The types with which routes.py is compiled."""


cdef class Routes:
    cdef public long long version
    cdef public tuple everyone, queue_groups, works
    cdef public bint responds
