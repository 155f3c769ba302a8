"""The types with which calls.py is compiled, and what it does in place of the standard library."""

from cpython.buffer cimport PyBUF_CONTIG, PyBUF_CONTIG_RO, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.math cimport ceil


cdef extern from "broker/transport/calls.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

    enum: TENSORBUS_RIGHTS_MAX

    Py_ssize_t receive_once(int sock, iovec *parts, int count, int *descriptors, int *came)
    Py_ssize_t send_once(int sock, iovec *parts, int count)
    int wait_once(int first, int events, int second, int timeout_ms)
    void ring_once(int descriptor)
    void set_errno(int number)
    double monotonic_s()


cdef enum:
    # What takes longer than to give Python's lock up and to get it again.
    _MUCH_BYTES = 65536
    _PARTS_MAX = 8
    # A signal that comes between the last look at signals and the wait itself does not end the wait: so it is looked again.
    _SIGNALS_MS = 200


cpdef Py_ssize_t read_once(sock, buffers, list descriptors=*) except -2
cpdef Py_ssize_t write_once(sock, buffers) except -2
cpdef ring(int descriptor)
cpdef int wait_for_either(int first, int events, int second, timeout_s) except -1


cdef inline Py_ssize_t _receive(int sock, list buffers, list descriptors) except -2:
    cdef Py_buffer views[2]
    cdef iovec parts[2]
    cdef int came[TENSORBUS_RIGHTS_MAX]
    cdef int held = 0, number = 0, failed, wanted = descriptors is not None
    cdef Py_ssize_t size = -1, room = 0
    try:
        for buffer in buffers:
            PyObject_GetBuffer(buffer, &views[held], PyBUF_CONTIG)
            parts[held].iov_base, parts[held].iov_len = views[held].buf, views[held].len
            room += views[held].len
            held += 1
        while True:
            if room > 2 * _MUCH_BYTES:
                with nogil:
                    size = receive_once(sock, parts, held, came if wanted else NULL, &number)
                    failed = errno
            else:
                size = receive_once(sock, parts, held, came if wanted else NULL, &number)
                failed = errno
            if size >= 0 or failed != EINTR:
                break
            PyErr_CheckSignals()
    finally:
        while held:
            held -= 1
            PyBuffer_Release(&views[held])
    for held in range(number):
        descriptors.append(came[held])
    if size < 0 and failed != EAGAIN:
        _raise(failed)
    return size


cdef inline Py_ssize_t _send(int sock, list buffers) except -2:
    cdef Py_buffer views[_PARTS_MAX]
    cdef iovec parts[_PARTS_MAX]
    cdef int held = 0, failed
    cdef Py_ssize_t size = -1, length = 0
    try:
        for buffer in buffers:
            PyObject_GetBuffer(buffer, &views[held], PyBUF_CONTIG_RO)
            parts[held].iov_base, parts[held].iov_len = views[held].buf, views[held].len
            length += views[held].len
            held += 1
        while True:
            if length > _MUCH_BYTES:
                with nogil:
                    size = send_once(sock, parts, held)
                    failed = errno
            else:
                size = send_once(sock, parts, held)
                failed = errno
            if size >= 0 or failed != EINTR:
                break
            PyErr_CheckSignals()
    finally:
        while held:
            held -= 1
            PyBuffer_Release(&views[held])
    if size < 0 and failed != EAGAIN:
        _raise(failed)
    return size


cdef inline int _wait_for_either(int first, int events, int second, double timeout_s) except -1:
    cdef double end_s = monotonic_s() + timeout_s if timeout_s >= 0 else 0.0, left_s = timeout_s
    cdef int ready, failed, timeout_ms = _SIGNALS_MS
    while True:
        if timeout_s >= 0:
            timeout_ms = <int>min(ceil(left_s * 1e3), _SIGNALS_MS)
        with nogil:
            ready = wait_once(first, events, second, timeout_ms)
            failed = errno
        if ready > 0 or (not ready and timeout_s >= 0 and monotonic_s() >= end_s):
            return ready
        if ready < 0 and failed != EINTR:
            _raise(failed)
        PyErr_CheckSignals()
        if timeout_s >= 0:
            left_s = max(0.0, end_s - monotonic_s())


cdef inline _ring(int descriptor):
    # Between its look at the flags and its write the owner of an eventfd may change both: it then holds up this thread
    # alone, for which no other one waits.
    with nogil:
        ring_once(descriptor)


cdef inline _raise(int failed):
    set_errno(failed)
    PyErr_SetFromErrno(OSError)
