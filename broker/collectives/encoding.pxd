"""The types with which encoding.py is compiled, and the kernels that it calls then."""

import cython

cdef extern from "broker/collectives/kernels.h" nogil:
    ctypedef struct tb_codec:
        void (*encode)(void *encoded, const float *array, const float *carried, float *lost, size_t elements) noexcept nogil
        void (*decode)(float *array, const void *encoded, size_t elements) noexcept nogil
    const tb_codec *tb_codec_for(int dtype)


@cython.locals(
    source='const float[::1]', target='unsigned char[::1]', before='float[::1]', after='float[::1]', elements=size_t,
    added='float *', kept='float *', codec='const tb_codec *',
)
cpdef _encode_with_kernel(dtype, array, carried, lost, out)

@cython.locals(source='const unsigned char[::1]', target='float[::1]', elements=size_t, codec='const tb_codec *')
cpdef _decode_with_kernel(dtype, encoded, array)
