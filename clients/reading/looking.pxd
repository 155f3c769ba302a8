"""The types with which looking.py is compiled."""

import cython

from broker.clock cimport monotonic_ns
from clients.reading.lines cimport Lines


cdef long long _WAKE_NS, _PAYS_NS, _DOUBT_MIN, _DOUBT_MAX
cdef int _LOOKS_MAX


cdef class Looking:
    cdef long long _doubt, _longest_ns, _mean_ns, _short

    @cython.locals(began_ns='long long', now_ns='long long', _=int)
    cpdef bint look(self, Lines lines) except -1
    cpdef looked(self, long long took_ns, bint found)
    cpdef slept(self, long long waited_ns, bint found)
