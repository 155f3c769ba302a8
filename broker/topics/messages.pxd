"""The types with which messages.py is compiled."""


cdef class Message:
    cdef public str topic, sender
    cdef public unsigned long long time_ns
    cdef public long long sequence, count, size_bytes
    cdef public int lane, flags, content, priority
    cdef public bytes body
    cdef public object payload, stream, first, trace
    cdef public long holders
    cdef public list singles

    cpdef fill(
        self, str topic, str sender, long long sequence, long long count, int lane, int flags, int content,
        unsigned long long time_ns, bytes body, payload, long long size_bytes, stream, first
    )
    cpdef release(self)


cdef class Assignment(Message):
    cdef public unsigned int delivery, deliveries

    cpdef release(self)
