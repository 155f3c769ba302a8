"""The types with which frames.py is compiled, and a header as it lies in memory."""

import cython

cdef Py_ssize_t _HEADER_BYTES
cdef int _DEFAULT


cdef packed struct Header:
    unsigned char kind, flags, lane, content
    unsigned int number, target, stream, count, body_bytes, payload_bytes
    unsigned long long total_bytes, sequence, time_ns


cdef class Frame:
    cdef public int kind, flags, lane, content
    cdef public unsigned int number, target, stream, count
    cdef public unsigned long long total_bytes, sequence, time_ns
    cdef public bytes body
    cdef public object payload


cdef inline bytes _packed(
    unsigned char kind, unsigned char flags, unsigned char lane, unsigned char content, unsigned int number,
    unsigned int target, unsigned int stream, unsigned int count, unsigned int body_bytes, unsigned int size,
    unsigned long long total_bytes, unsigned long long sequence, unsigned long long time_ns
):
    # As HEADER says, on machines that are little-endian.
    cdef Header header
    header.kind, header.flags, header.lane, header.content = kind, flags, lane, content
    header.number, header.target, header.stream, header.count = number, target, stream, count
    header.body_bytes, header.payload_bytes, header.total_bytes = body_bytes, size, total_bytes
    header.sequence, header.time_ns = sequence, time_ns
    return (<char *> &header)[:sizeof(Header)]


cpdef Py_ssize_t payload_bytes(payload) except -1


cpdef bytes pack_header(
    unsigned char kind, unsigned char flags, unsigned char lane, unsigned char content, unsigned int number,
    unsigned int target, unsigned int stream, unsigned int count, unsigned int body_bytes, unsigned int size,
    unsigned long long total_bytes, unsigned long long sequence, unsigned long long time_ns
)


@cython.locals(body=bytes, body_bytes=Py_ssize_t, size=Py_ssize_t)
cpdef Py_ssize_t encode(Frame frame, list buffers) except -1
