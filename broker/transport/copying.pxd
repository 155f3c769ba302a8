"""The types with which copying.py is compiled."""

import cython

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uintptr_t

cdef extern from "broker/copy_bytes.h" nogil:
    void copy_bytes(void *to, const void *source, size_t size)

cdef extern from "broker/transport/streaming_copy.h" nogil:
    void streaming_copy(unsigned char *to, const unsigned char *source, size_t size)


cdef size_t _PAST_CACHES


cdef inline void _copied(unsigned char *to, const unsigned char *source, size_t size) noexcept nogil:
    if size >= _PAST_CACHES:
        streaming_copy(to, source, size)
    else:
        copy_bytes(to, source, size)


@cython.locals(size=Py_ssize_t, target='unsigned char[::1]', origin='const unsigned char[::1]')
cpdef copy(to, source)
cpdef copy_flat(uintptr_t address, source, Py_ssize_t size_bytes)
