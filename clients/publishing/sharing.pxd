"""The types with which sharing.py is compiled."""

import cython

from clients.connection.core cimport Core
from clients.connection.driver cimport Driver
from clients.publishing.arenas cimport Arenas


@cython.locals(arenas=Arenas, size_bytes=Py_ssize_t)
cpdef empty_shared(Driver driver, shape, dtype)
@cython.locals(core=Core)
cpdef make_room(Driver driver, Py_ssize_t size_bytes)
