"""The types with which line.py is compiled."""

import cython

from libc.string cimport memcmp
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

from broker.protocol.frames cimport Frame, Header


cdef extern from "broker/protocol/line.h" nogil:
    enum:
        TB_DIRECT_VERSION, TB_DIRECT_HEADER, TB_DIRECT_READERS, TB_NOTHING, TB_FOUND, TB_EJECTED, TB_RUBBISH
        TB_DIRECT_RELEASES

    ctypedef struct tb_place:
        pass

    ctypedef struct tb_releases:
        tb_place *place
        uint64_t count

    ctypedef struct tb_end:
        uint64_t position
        tb_place *places[8]
        int readers

    ctypedef struct tb_found:
        unsigned char header[52]
        const unsigned char *body
        const unsigned char *payload
        uint64_t body_bytes
        uint64_t payload_bytes
        uint64_t behind

    void tb_ring_format(void *memory, uint32_t data_bytes)
    int tb_ring_fits(const void *memory, uint64_t size_bytes)
    void tb_end_open(tb_end *end, void *memory, uint64_t size_bytes)
    int tb_write(
        tb_end *end, const void *header, const void *body, uint64_t body_bytes, const void *payload,
        uint64_t payload_bytes
    )
    int tb_look_at(tb_end *end, uint64_t *position, tb_found *found)
    int tb_reader_look(tb_end *end, tb_found *found, uint64_t *position)
    int tb_reader_take(tb_end *end, uint64_t position, uint64_t behind)
    int tb_reader_has(tb_end *end)
    void tb_reader_sleeps(tb_end *end, int sleeps)
    void tb_drained(tb_end *end, uint64_t position)
    uint64_t tb_close(tb_end *end)
    int tb_is_closed(tb_end *end)
    uint64_t tb_taken(tb_end *end, int reader)
    uint64_t tb_eject(tb_end *end, int reader)
    uint64_t tb_undrained(tb_end *end)
    int tb_release(tb_releases *releases, uint64_t position)
    int tb_release_due(tb_releases *releases)
    uint64_t tb_released(tb_releases *releases)
    uint64_t tb_let_go(tb_releases *releases)
    void tb_collected(tb_releases *releases)
    int tb_want(tb_releases *releases, uint64_t more)
    uint64_t tb_collectable(tb_end *end)
    uint64_t tb_see_let_go(tb_end *end, int reader, uint64_t *count)


cdef inline void *_pointer(uintptr_t address):
    return <void *> address


cdef inline _fill(Frame frame, tb_found *found, bytes body):
    """Fills a frame, with the body that is given where it is the same: most are like the one before."""
    cdef Header *header = <Header *> found.header
    frame.kind, frame.flags, frame.lane, frame.content = header.kind, header.flags, header.lane, header.content
    frame.number, frame.target, frame.stream, frame.count = header.number, header.target, header.stream, header.count
    frame.total_bytes, frame.sequence, frame.time_ns = header.total_bytes, header.sequence, header.time_ns
    if (
        body is None or len(body) != <Py_ssize_t> found.body_bytes
        or memcmp(<const char *> body, found.body, found.body_bytes) != 0
    ):
        body = (<const char *> found.body)[:found.body_bytes]
    frame.body = body
    frame.payload = (<const char *> found.payload)[:found.payload_bytes]


cdef class End:
    cdef tb_end _end
    cdef bytes _body
    cdef list _kept


cdef class Writer(End):
    cdef uint64_t _seen[8]
    cpdef int write(self, bytes header, bytes body, bytes payload) except? -3
    cpdef long long collectable(self) except -1
    cpdef unsigned long long let_go(self, int reader) except? 7


cdef class Reader(End):
    @cython.locals(found=tb_found, start=uint64_t, look=int)
    cpdef int take(self, Frame frame) except -1
    cpdef bint has_more(self) except -1
    cpdef sleeps(self, bint sleeps)


cdef class Drain(End):
    @cython.locals(found=tb_found, position=uint64_t, look=int)
    cpdef int take(self, Frame frame) except -1
    @cython.locals(word=uint64_t)
    cpdef long long taken(self, int reader) except? -2


cdef class Releases:
    cdef tb_releases _releases
    cdef object _kept
    cdef public list late

    cpdef int release(self, unsigned long long position) except? -2
    cpdef bint again(self) except -1
    cpdef bint due(self) except -1
    cpdef unsigned long long released(self) except? 7
    cpdef list collect(self, unsigned long long until)
    cpdef bint want(self, long long more) except -1


cdef int _SHARED, _LANES
cdef Py_ssize_t _BODY_BYTES_MAX


@cython.locals(unshared_bytes='unsigned long long')
cpdef check_entry(Frame frame)
