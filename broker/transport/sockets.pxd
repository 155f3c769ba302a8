"""The types with which sockets.py is compiled, its system calls made directly."""

import cython

from broker.transport.calls cimport _receive, _send, read_once, write_once
from broker.wires cimport Wire


cdef int _NOTHING


cdef class SocketWire(Wire):
    cdef object _socket
    cdef int _descriptor

    cpdef end(self)

    cpdef Py_ssize_t receive_into(self, list buffers) except -1
    @cython.locals(size=Py_ssize_t)
    cpdef Py_ssize_t receive(self, list buffers, list descriptors) except -1
    cpdef Py_ssize_t send(self, list buffers) except -1
    @cython.locals(size=Py_ssize_t)
    cpdef Py_ssize_t write(self, list buffers) except -1
