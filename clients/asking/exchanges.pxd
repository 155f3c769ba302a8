"""The types with which exchanges.py is compiled."""

import cython

from clients.reading.messages cimport Message
from clients.publishing.outbound cimport Outbound
from clients.connection.signals cimport Signal


cdef class Exchange(Signal):
    cdef public unsigned long long number
    cdef public object inbox
    cdef public long long seen_ns
    cdef public bint cancelled, over
    cdef public long long sent, kept_bytes
    cdef public Outbound sending
    cdef public list kept
    cdef Exchanges _table
    cdef long long _credit_messages, _credit_bytes
    cdef list _on_cancel

    @cython.locals(size_bytes='long long')
    cpdef said(self, Outbound message)


cdef class Request(Message):
    cdef public Exchange exchange


cdef class Exchanges:
    cdef public object call
    cdef public long long kept_bytes
    cdef dict _early, _by_number
    cdef object __weakref__

    @cython.locals(number='unsigned long long', known=Exchange, exchange=Exchange, request=Request)
    cpdef receive(self, Message message, long long now_ns)
    @cython.locals(oldest=Exchange, too_many=bint)
    cdef _forget_old(self, long long now_ns)
    cpdef forget(self, Exchange exchange)
