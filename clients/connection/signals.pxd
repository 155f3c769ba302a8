"""The types with which signals.py is compiled."""

cdef class Signal:
    cdef public bint ready
    cdef public list callbacks

    cpdef set(self)
    cpdef clear(self)
