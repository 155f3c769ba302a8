"""The types with which messages.py is compiled."""

import cython


cdef class Chunk:
    cdef object _bytes, _view
    cdef public Chunk following

    cpdef data(self)


cdef class Stream:
    cdef object __weakref__
    cdef public Chunk last
    cdef public long long received_bytes
    cdef public bint complete
    cdef public object aborted, loan
    cdef public list waiters, watchers

    @cython.locals(chunk=Chunk)
    cpdef append(self, payload, bint complete)
    cpdef let_go(self)
    @cython.locals(waiters=list)
    cdef _wake(self)


@cython.locals(stream=Stream, first=Chunk, last=Chunk)
cpdef tuple shared_stream(loan, long long size_bytes, view)


cdef class Message:
    cdef public str topic, sender
    cdef public unsigned long long time_ns
    cdef public long long sequence, count, size_bytes
    cdef public int lane, flags, content, priority
    cdef public bytes body
    cdef public object payload, trace
    cdef public Stream stream
    cdef public Chunk first
    cdef public long holders
    cdef public list singles

    cpdef fill(
        self, str topic, str sender, long long sequence, long long count, int lane, int flags, int content,
        unsigned long long time_ns, bytes body, payload, long long size_bytes, Stream stream, Chunk first
    )
    cpdef release(self)


cdef class Assignment(Message):
    cdef public unsigned int delivery, deliveries

    cpdef release(self)
