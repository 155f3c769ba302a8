"""The types with which outbound.py is compiled."""


cdef class Outbound:
    cdef public object topic, lane, tensor, payload, headers, place, value
    cdef public int content, flags, priority
    cdef public unsigned int reference
    cdef public unsigned long long request
    cdef public str reply_to, error
    cdef public bint urgent, last, end, replies

    cpdef bytes body(self, session=*)
