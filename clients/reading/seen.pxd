"""The types with which seen.py is compiled."""

cdef class Seen:
    cdef public tuple lanes
    cdef public object moment
    cdef object _wishes
    cdef bint _goes_on

    cpdef first_of(self, int lane)
