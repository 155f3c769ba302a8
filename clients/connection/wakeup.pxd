"""The types with which wakeup.py is compiled."""

cdef class Wakeup:
    cdef public int descriptor
    cdef public object identity
    cdef object _poller
