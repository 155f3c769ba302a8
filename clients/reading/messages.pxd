"""The types with which messages.py is compiled."""

import cython


cdef int _BYTES, _TENSOR


cdef class Publication:
    cdef public str topic, sender


cdef class Message:
    cdef public Publication _publication
    cdef public object _payload, _reply, _decoded, _value, _delivery, _device
    cdef public bytes _body
    cdef public long long sequence, gap, published_ns
    cdef public int _lane, _content

    cpdef fill(
        self, Publication publication, long long sequence, long long published_ns, int lane, int content, bytes body,
        payload, reply
    )
    cdef Py_ssize_t _size(self) except -1
    cdef _array(self)


@cython.locals(
    data=cython.p_uchar, at=cython.p_uchar, head=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t, sequence=cython.longlong,
    body_bytes=Py_ssize_t, size=Py_ssize_t, message=Message, messages=list,
)
cpdef list unpack_batch(bytes payload, Py_ssize_t count, publication, long long first_sequence, int lane, reply)
