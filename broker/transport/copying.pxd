"""The types with which copying.py is compiled."""

import cython

cdef extern from "broker/copy_bytes.h" nogil:
    void copy_bytes(void *to, const void *source, size_t size)

cdef extern from "broker/transport/streaming_copy.h" nogil:
    void streaming_copy(unsigned char *to, const unsigned char *source, size_t size)


@cython.locals(size=Py_ssize_t, past_caches=bint, target='unsigned char[::1]', origin='const unsigned char[::1]')
cpdef copy(to, source)
