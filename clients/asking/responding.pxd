"""The types with which responding.py is compiled."""

import cython

from clients.connection.driver cimport Driver
from clients.asking.exchanges cimport Exchange, Exchanges, Request
from clients.reading.handlers cimport Handlers
from clients.reading.messages cimport Message


cdef class Responder:
    cdef public Handlers handlers
    cdef Exchanges _exchanges
    cdef object _function

    cdef _answer(self, Request request)
