"""The types with which topics.py is compiled."""

import cython

from broker.state.delivery cimport Subscription
from broker.state.records cimport SessionRecord
from broker.state.routes cimport Routes
from broker.topics.messages cimport Message
from broker.topics.ring cimport Ring


cdef object _BLOCK


cdef class TopicRecord:
    cdef public str name
    cdef public Ring ring
    cdef public object marks, policy, works, line
    cdef public bint special
    cdef public Routes routes
    cdef public tuple held_back, arriving
    cdef public long long marked, publishers, published, published_bytes, refused


cdef class Publisher:
    cdef public TopicRecord topic
    cdef public unsigned int number, acknowledge
    cdef public SessionRecord session
    cdef public str sender
    cdef public long long used_messages, used_bytes, until_line, line_after
    cdef public bint held_back, refusal_told, restricted
    cdef public Message message
    cdef public unsigned long long request
    cdef public object told


cdef class Router:
    cdef public object policies, ended, works, on_moved
    cdef public dict topics, lines
    cdef public long long retained_bytes
    cdef public Py_ssize_t topics_max
    cdef public long long moment
    cdef long long _version
    cdef public object _trie
    cdef object _first_sequence
    cdef public dict _inboxes
    cdef Routes _newest_routes

    @cython.locals(routes=Routes)
    cpdef Routes routes(self, TopicRecord topic)
    cdef Routes _find_routes(self, TopicRecord topic)
    @cython.locals(routes=Routes, subscription=Subscription)
    cpdef route(self, TopicRecord topic, Message message)
    cpdef complete(self, TopicRecord topic, Message message)
    @cython.locals(routes=Routes, subscription=Subscription)
    cpdef list responders(self, TopicRecord topic)


@cython.locals(subscription=Subscription)
cdef _route_batch(Routes routes, Message message)
cpdef offer(Subscription subscription, Message message, split)
