"""The types with which places.py is compiled, and a place as it lies in the memory of a
little-endian machine."""

import cython

from libc.stdint cimport uint32_t, uint64_t


cdef unsigned long long _PAYLOAD_BYTES_MAX
cdef int _CHARGE_SHIFT


cdef packed struct Place:
    uint32_t arena
    uint32_t loan
    uint64_t offset


cdef inline const Place *place_in(payload) noexcept:
    """Where a message lies, as its payload says; NULL if that is not bytes of the right length."""
    if type(payload) is bytes and len(<bytes> payload) == sizeof(Place):
        return <const Place *> <const char *> <bytes> payload
    return NULL


cdef inline bytes _packed(uint32_t arena, uint32_t loan, uint64_t offset):
    cdef Place place
    place.arena, place.loan, place.offset = arena, loan, offset
    return (<const char *> &place)[:sizeof(Place)]


cpdef bytes packed_place(uint32_t arena, uint32_t loan, uint64_t offset)
@cython.locals(place='const Place *')
cpdef tuple place_of(payload)
cpdef bytes renamed(bytes place, uint32_t name)
cpdef unsigned long long charge(unsigned long long size_bytes) except? 7
