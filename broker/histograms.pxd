"""The types with which histograms.py is compiled."""

import cython


cdef long long _FIRST_NS, _LAST


cdef enum:
    # As BUCKETS; more than that would not fit.
    _ROOM = 23


cdef class Histogram:
    cdef long long _observed[_ROOM]
    cdef list _added
    cdef public long long sum_ns

    @cython.locals(rest='long long', index=Py_ssize_t)
    cpdef observe(self, long long time_ns, long long weight=*)
