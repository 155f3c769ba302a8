"""The types with which held.py is compiled."""

import cython

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uintptr_t


cdef class Held:
    cdef object _holder
    cdef uintptr_t _address
    cdef Py_ssize_t _size_bytes
    cdef bint _read_only


@cython.locals(held=Held)
cpdef hold(holder, uintptr_t address, Py_ssize_t size_bytes, bint writable)
