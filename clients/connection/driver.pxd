"""The types with which driver.py is compiled."""

from clients.connection.pump cimport Pump


cdef class Driver(Pump):
    cdef object _addresses, _greeting, _connect_timeout_s, _reconnect_timeout_s, _on_reconnect, _keeper
    cdef Py_ssize_t _eager
    cdef public object holding
