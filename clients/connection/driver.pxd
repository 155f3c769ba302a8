"""The types with which driver.py is compiled."""

from clients.connection.pump cimport Pump


cdef class Driver(Pump):
    cdef object _dialling, _keeper
    cdef Py_ssize_t _eager
    cdef public object holding
