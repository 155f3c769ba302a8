"""The types with which wires.py is compiled."""


cdef class Wire:
    cpdef Py_ssize_t receive_into(self, list buffers) except -1
    cpdef Py_ssize_t send(self, list buffers) except -1


cdef class CallingWire(Wire):
    cdef object _receive, _send

    cpdef Py_ssize_t receive_into(self, list buffers) except -1
    cpdef Py_ssize_t send(self, list buffers) except -1
