"""The types with which following.py is compiled."""

cdef class Following:
    cdef object _router, _publishing, _sessions, _waiting

    cpdef bint waits(self) except -1
