"""The types with which seen.py is compiled."""

import cython


cdef class Seen:
    cdef public object moment
    cdef tuple _lanes
    cdef object _wishes
    cdef bint _goes_on
    cdef str _topic
    cdef int _lane
    cdef long long _sequence

    cpdef saw(self, str topic, int lane, long long sequence)
    @cython.locals(seen=dict)
    cdef _note(self)
    cdef _first_of(self, int lane)
