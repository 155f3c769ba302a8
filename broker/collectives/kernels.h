/* The arithmetic of the collectives: what reduce.py does with numpy, to the bit, several times as fast.

   Each kernel reads every source once and writes the result once. It takes a few vectors of the first source, adds to
   them the same vectors of the others, in the order of the ranks, and stores them; nothing but registers lies between.

   float16 and bfloat16 are widened to float32, folded there over all sources and rounded once, to nearest, ties to even.
   A mean is a sum that is divided once, at the end. Integers wrap. Of min and max, as in numpy, the first NaN wins, and of
   two equal zeros the later. A NaN stays one, but which bits it has besides is promised for no op: processors differ. */
#ifndef TENSORBUS_KERNELS_H
#define TENSORBUS_KERNELS_H

#include <stddef.h>

enum { TB_SUM, TB_MEAN, TB_MIN, TB_MAX, TB_PRODUCT, TB_OPS };

enum {
    TB_BOOL,
    TB_INT8,
    TB_INT16,
    TB_INT32,
    TB_INT64,
    TB_UINT8,
    TB_UINT16,
    TB_UINT32,
    TB_UINT64,
    TB_FLOAT16,
    TB_BFLOAT16,
    TB_FLOAT32,
    TB_FLOAT64,
    TB_COMPLEX64,
    TB_COMPLEX128,
    TB_INT8_BLOCKS,
    TB_DTYPES
};

/* Numbers in a block of TB_INT8_BLOCKS, which is an element of 64 bytes. */
enum { TB_BLOCK_ELEMENTS = 60 };

/* out: receives `elements` elements, at any address. It may be one of the sources, but must not overlap one otherwise.
   sources: in the order of the ranks, each of `elements` elements, at any address.
   count: of the sources, at least 1.
   divisor: of a mean the number of ranks; 1 for all other ops.
   streaming: how many places receive the result that are large and not read soon, `out` among them: they are written past
   the processor's caches then. As with ordinary stores, who sees a later store of this thread with release order sees all
   of them. 0: `out` is written as usual.
   copies: the others of these places, `streaming` - 1, which overlap nothing; best at addresses that are like that of `out`
   modulo 64. */
typedef void (*tb_reduce)(void *out, const void *const *sources, int count, size_t elements, int divisor, int streaming,
                          void *const *copies);

/* The kernel of an op and a dtype, by the numbers above; NULL where the pair cannot be reduced. Any thread may ask. */
tb_reduce tb_reduce_kernel(int op, int dtype);

/* Arrays of float32 to one of another dtype and back; `elements` are the floats', of which the last block may have fewer.
   carried: what is added to the array first, or NULL.
   lost: receives what the encoded array then lacks, 0 where it is not finite; it may be `carried`. Or NULL. */
typedef void (*tb_encode)(void *encoded, const float *array, const float *carried, float *lost, size_t elements);
typedef void (*tb_decode)(float *array, const void *encoded, size_t elements);

typedef struct {
    tb_encode encode;
    tb_decode decode;
} tb_codec;

/* Of TB_FLOAT16, TB_BFLOAT16 and TB_INT8_BLOCKS; NULL of others. */
const tb_codec *tb_codec_for(int dtype);

/* The instructions in use: "avx512", "avx2", "neon" or "plain". They are the best that the processor has, but none above
   what the environment variable TENSORBUS_KERNELS named, if it did, when this or tb_reduce_kernel was first called. */
const char *tb_kernels_level(void);

/* As tb_reduce_kernel, of one level; NULL also where the processor has not got it. For tests and comparisons. */
tb_reduce tb_reduce_kernel_of(const char *level, int op, int dtype);
const tb_codec *tb_codec_of(const char *level, int dtype);

#endif
