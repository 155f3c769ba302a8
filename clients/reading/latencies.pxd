"""The types with which latencies.py is compiled."""

import cython

from broker.histograms cimport Histogram
from clients.reading.messages cimport Message


cdef int _SAMPLES
cdef long long _LONGEST_NS


cdef class Latencies:
    cdef public long long wall_ns, interval_ns
    cdef long long _offset_ns, _next_ns, _early
    cdef list _histograms
    cdef bint _devices

    cpdef read_at(self, long long now_ns)
    cpdef arrived(self, int lane, long long published_ns, long long began_ns)
    @cython.locals(
        count=Py_ssize_t, samples=Py_ssize_t, sample=Py_ssize_t, first=Py_ssize_t, end=Py_ssize_t, message=Message,
    )
    cpdef batch_arrived(self, list messages, long long began_ns)
    @cython.locals(time_ns='long long', histogram=Histogram)
    cdef _count(self, int lane, long long published_ns, long long weight)
