"""The types with which responding.py is compiled."""

import cython

from clients.driver cimport Driver
from clients.exchanges cimport Exchange, Exchanges, Request
from clients.handlers cimport Handlers
from clients.messages cimport Message


cdef class Responder:
    cdef public Handlers handlers
    cdef Exchanges _exchanges
    cdef object _function

    cdef _answer(self, Request request)
