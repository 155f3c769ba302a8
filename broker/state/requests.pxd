"""The types with which requests.py is compiled."""

import cython

from broker.protocol.frames cimport Frame
from broker.state.delivery cimport Subscription
from broker.state.records cimport SessionRecord
from broker.topics.messages cimport Message


cdef int _REQUEST, _ACKNOWLEDGE


cdef class Request:
    cdef public SessionRecord requester
    cdef public str topic
    cdef public unsigned long long number
    cdef public unsigned int reference
    cdef public bint many
    cdef public dict asked


cdef class Requests:
    cdef object _flush
    cdef public object catch_up
    cdef dict _by_inbox, _by_responder

    @cython.locals(number='unsigned long long', requests=dict, request=Request, subscription=Subscription)
    cpdef ask(self, SessionRecord session, Frame frame, Message message, list responders)
    cdef dict _of(self, SessionRecord session)
    @cython.locals(key=tuple, known=dict)
    cdef _expect(self, Request request, Subscription subscription, Message message)
    @cython.locals(known=dict)
    cdef _expect_no_more(self, Request request, Subscription subscription)
    @cython.locals(requests=dict)
    cdef _forget(self, Request request)
    @cython.locals(requests=dict, request=Request, subscription=Subscription)
    cpdef replied(self, SessionRecord session, str inbox, unsigned long long number)
    @cython.locals(subscription=Subscription)
    cdef _stop(self, Request request)
    cdef _tell_lost(self, Request request, str reason)
    cdef _send(self, SessionRecord session, Frame frame)
