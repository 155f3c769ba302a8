"""The types with which reduce.py is compiled, and the kernels that it calls then."""

import cython

cdef extern from "broker/collectives/kernels.h" nogil:
    ctypedef void (*tb_reduce)(void *, const void *const *, int, size_t, int, int, void *const *) noexcept
    tb_reduce tb_reduce_kernel(int op, int dtype)

ctypedef const void *const *Sources


@cython.locals(
    count=Py_ssize_t, index=Py_ssize_t, size=Py_ssize_t, elements=size_t, divisor=int, kernel=tb_reduce,
    source='const unsigned char[::1]', target='unsigned char[::1]', addresses='size_t[::1]',
)
cpdef _accumulate_with_kernel(op, contributions, dtype, world_size, out)
