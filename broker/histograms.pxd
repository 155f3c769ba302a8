"""The types with which histograms.py is compiled."""

import cython


cdef long long _FIRST_NS, _LAST


cdef class Histogram:
    cdef public list counts
    cdef public long long sum_ns

    @cython.locals(rest='long long', index=Py_ssize_t)
    cpdef observe(self, long long time_ns, long long weight=*)
