"""The types with which outgoing_topic.py is compiled."""

from broker.protocol.batches cimport Batch
from clients.publishing.line_out cimport LineOut
from clients.connection.signals cimport Signal


cdef class OutgoingTopic:
    cdef public str name
    cdef public unsigned int number
    cdef public long long credit_messages, credit_bytes, last_ns, rapid, burst_messages, batch_bytes, batch_window_ns
    cdef public Signal credit, stream_over
    cdef public object alike, stream, refused, denied, max_message_bytes
    cdef public Batch batch
    cdef public LineOut line
    cdef public int lane
    cdef public bint special
