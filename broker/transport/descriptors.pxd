"""The types with which descriptors.py is compiled."""

import cython

from broker.transport.sockets cimport SocketWire


cdef class Passage:
    cdef public bint enabled
    cdef object _leaving, _socket
    cdef dict _arrived
    cdef list _devices


cdef class LocalWire(SocketWire):
    cdef Passage _passage

    @cython.locals(passage=Passage, size=Py_ssize_t, descriptors=list)
    cpdef Py_ssize_t receive_into(self, list buffers) except -1
    cpdef Py_ssize_t send(self, list buffers) except -1
    cdef Py_ssize_t _send_beside(self, list buffers) except -1
