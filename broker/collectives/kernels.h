/* The arithmetic of the collectives: arrays of all ranks in, one array out. */
#ifndef TENSORBUS_KERNELS_H
#define TENSORBUS_KERNELS_H

#include <stddef.h>

/* Reduces `count` arrays of `elements`, in their order, into `out`, which overlaps none of them.
   A mean divides by `divisor`. With `streaming` the result is written past the caches. */
typedef void (*tb_reduce)(void *out, const void *const *sources, int count, size_t elements, int divisor, int streaming);

/* By the places of op in sum, mean, min, max, product and of dtype in claims.ITEM_BYTES; NULL where there is none. */
tb_reduce tb_reduce_kernel(int op, int dtype);

#endif
