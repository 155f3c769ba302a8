"""The types with which topic_line.py is compiled."""

import cython

from broker.protocol.frames cimport Frame
from broker.protocol.line cimport Drain, check_entry
from broker.protocol.places cimport packed_place, place_of
from broker.state.delivery cimport Subscription
from broker.state.line_leases cimport LineLeases
from broker.state.topics cimport Publisher, TopicRecord
from broker.topics.messages cimport Message
from broker.topics.queues cimport Queue


cdef int _PUBLISH, _DEFAULT, _ALLOWED_FLAGS, _SHARED


cdef class LineReader:
    cdef public object session, place
    cdef public list subscriptions
    cdef public LineLeases leases


cdef class TopicLine:
    cdef public unsigned int number
    cdef public int asks
    cdef public TopicRecord topic
    cdef public Publisher publisher
    cdef public list readers
    cdef public bint draining
    cdef public long long offered_ns
    cdef public object ring
    cdef public tuple keeps
    cdef public dict arenas
    cdef public object _lines
    cdef public Drain _end
    cdef long long _messages, _data_bytes, _least
    cdef object _fault, _unread
    cdef bint _lends

    @cython.locals(reader=LineReader)
    cdef _take_in(self)
    @cython.locals(end=Drain, publisher=Publisher, before='long long', frame=Frame)
    cdef _take_all(self)
    cdef _find(self, Frame frame)
    @cython.locals(reader=LineReader, subscription=Subscription)
    cpdef passed(self, Message message)
    @cython.locals(reader=LineReader)
    cdef _lend(self, loan)
    cdef _forget_read(self)
    @cython.locals(reader=LineReader, subscription=Subscription, queue=Queue)
    cdef bint _is_out_of_credit(self) except -1
