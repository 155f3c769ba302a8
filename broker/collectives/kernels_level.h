/* All kernels for one kind of processor. A kernels_*.c file defines these and includes this file:

     VECTOR_BYTES   the length of a vector
     TABLE, CODECS  the names of the tables of kernels and of codecs that it makes
     STREAM(to, v)  stores a vector past the caches, at an address that is a multiple of VECTOR_BYTES
     FENCE()        orders such stores before later ones

   and where the processor converts float16:

     HALF_WIDEN_LOWER(v), HALF_WIDEN_UPPER(v)   half the vector's float16 as a vector of float32
     HALF_NARROW(lower, upper)                  the two back in one

   It is written in gcc's vector types, so the same lines are SSE2, AVX2, AVX-512 or NEON; floating-point operations must
   not be fused (-ffp-contract=off), or a product would not be rounded before it is added. */
#include "kernels.h"

#include <stdint.h>
#include <string.h>

#include "broker/copy_bytes.h"

#define INLINE static inline __attribute__((always_inline))
#define VECTOR(lane, name) typedef lane name __attribute__((vector_size(VECTOR_BYTES), may_alias))

VECTOR(int8_t, i8);
VECTOR(int16_t, i16);
VECTOR(int32_t, i32);
VECTOR(int64_t, i64);
VECTOR(uint8_t, u8);
VECTOR(uint16_t, u16);
VECTOR(uint32_t, u32);
VECTOR(uint64_t, u64);
VECTOR(float, f32);
VECTOR(double, f64);

/* What suits the processor's memory, as measured (python -m bench.kernels). A block is what one source gives before the
   next one has its turn: as much as the registers hold. More sources than a group are more streams than the processor
   follows, so a group is taken through a whole tile before the next one, and what it came to waits in the first cache. */
enum {
    REGISTER_VECTORS = VECTOR_BYTES < 64 ? 8 : 4,
    BLOCK_BYTES = REGISTER_VECTORS * VECTOR_BYTES,
    LINE_BYTES = 64,
    AHEAD_BYTES = 512,
    GROUP_SOURCES = 8,
    TILE_BYTES = 8192,
};

typedef u8 (*combine_function)(u8 total, u8 next);
typedef void (*open_function)(u8 parts[2], u8 source);
typedef u8 (*close_function)(const u8 parts[2], int divisor);

/* Of what a kernel is made: a vector of a source is opened to one or two (`parts`), which are combined with those of the
   other sources, and closed at the end. */
typedef struct {
    int item_bytes, parts;
    open_function open;
    combine_function combine;
    close_function close;
} recipe;

INLINE u8 load(const unsigned char *from)
{
    u8 v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE u8 choose(u8 mask, u8 yes, u8 no) { return (yes & mask) | (no & ~mask); }

/* `vectors` vectors at byte `at`, of the sources from `first` to before `end`. Unless these are the last ones, what comes of
   them is kept for the next. */
INLINE void reduce_vectors(unsigned char *out, const void *const *sources, int first, int end, int count, size_t at,
                           int divisor, int streaming, void *const *copies, int vectors, u8 (*kept)[2], recipe with)
{
    u8 total[REGISTER_VECTORS][2], next[2];
    for (int i = 0; i < vectors; i++)
        if (first)
            for (int part = 0; part < with.parts; part++)
                total[i][part] = kept[i][part];
        else
            with.open(total[i], load((const unsigned char *)sources[0] + at + i * VECTOR_BYTES));
    for (int source = first ? first : 1; source < end; source++) {
        const unsigned char *from = (const unsigned char *)sources[source] + at;
        for (int i = 0; i < vectors; i++) {
            with.open(next, load(from + i * VECTOR_BYTES));
            for (int part = 0; part < with.parts; part++)
                total[i][part] = with.combine(total[i][part], next[part]);
        }
    }
    for (int i = 0; i < vectors; i++) {
        if (end < count) {
            for (int part = 0; part < with.parts; part++)
                kept[i][part] = total[i][part];
            continue;
        }
        total[i][0] = with.close(total[i], divisor);
        unsigned char *to = out + at + i * VECTOR_BYTES;
        if (streaming)
            STREAM(to, total[i][0]);
        else
            memcpy(to, &total[i][0], sizeof total[i][0]);
    }
    /* Whole lines of one place, then of the next: what a processor gathers of lines is little. */
    for (int copy = 0; end == count && copy < streaming - 1; copy++)
        for (int i = 0; i < vectors; i++)
            STREAM((unsigned char *)copies[copy] + at + i * VECTOR_BYTES, total[i][0]);
}

INLINE u8 load_part(const unsigned char *from, size_t bytes)
{
    u8 v = {0};
    memcpy(&v, from, bytes);
    return v;
}

/* Less than a vector at byte `at`. */
INLINE void reduce_rest(unsigned char *out, const void *const *sources, int count, size_t at, size_t bytes, int divisor,
                        recipe with)
{
    u8 total[2], next[2];
    with.open(total, load_part((const unsigned char *)sources[0] + at, bytes));
    for (int source = 1; source < count; source++) {
        with.open(next, load_part((const unsigned char *)sources[source] + at, bytes));
        for (int part = 0; part < with.parts; part++)
            total[part] = with.combine(total[part], next[part]);
    }
    u8 result = with.close(total, divisor);
    memcpy(out + at, &result, bytes);
}

/* Has the lines of all sources come at once, where loads alone would wait for one source after the other. Short floats leave
   time to have them come earlier; into the second cache then, as buffers that begin on pages compete for the same few ways
   of the first. Asking for memory that is not there does nothing. */
INLINE void ask_for(const unsigned char *block, int parts)
{
    for (int line = 0; line < BLOCK_BYTES; line += LINE_BYTES)
        if (parts == 1)
            __builtin_prefetch(block + line);
        else
            __builtin_prefetch(block + line + AHEAD_BYTES, 0, 2);
}

/* As many whole blocks as there are from byte `at` on; returns the byte behind them. */
INLINE size_t reduce_blocks(unsigned char *out, const void *const *sources, int count, size_t at, size_t bytes, int divisor,
                            int streaming, void *const *copies, recipe with)
{
    u8 kept[TILE_BYTES / VECTOR_BYTES][2];
    for (size_t size; (size = bytes - at) >= BLOCK_BYTES; at += size) {
        size = size < TILE_BYTES ? size / BLOCK_BYTES * BLOCK_BYTES : TILE_BYTES;
        for (int first = 0, end; first < count; first = end) {
            end = count - first < GROUP_SOURCES ? count : first + GROUP_SOURCES;
            for (size_t block = 0; block < size; block += BLOCK_BYTES) {
                for (int source = first; source < end; source++)
                    ask_for((const unsigned char *)sources[source] + at + block, with.parts);
                reduce_vectors(out, sources, first, end, count, at + block, divisor, streaming, copies,
                               REGISTER_VECTORS, kept + block / VECTOR_BYTES, with);
            }
        }
    }
    return at;
}

/* Whether all places can be written past the caches from byte `at` on. */
INLINE int are_aligned(const unsigned char *out, int places, void *const *copies, size_t at)
{
    uintptr_t low = (uintptr_t)out + at;
    for (int copy = 0; copy < places - 1; copy++)
        low |= (uintptr_t)copies[copy] + at;
    return low % VECTOR_BYTES == 0;
}

/* Some of the result to where it is wanted besides. */
INLINE void copy_result(const unsigned char *out, int places, void *const *copies, size_t start, size_t stop)
{
    for (int copy = 0; copy < places - 1; copy++)
        copy_bytes((unsigned char *)copies[copy] + start, out + start, stop - start);
}

/* The first and last bytes are taken by themselves, so that stores are aligned in between, if elements are. */
INLINE void reduce(unsigned char *out, const void *const *sources, int count, size_t bytes, int divisor, int streaming,
                   void *const *copies, recipe with)
{
    int places = streaming;
    size_t start = -(uintptr_t)out % VECTOR_BYTES;
    if (start % with.item_bytes || start > bytes)
        start = 0;
    if (start)
        reduce_rest(out, sources, count, 0, start, divisor, with);
    streaming = are_aligned(out, places, copies, start) ? places : 0;
    size_t at = reduce_blocks(out, sources, count, start, bytes, divisor, streaming, copies, with), stop = at;
    if (streaming)
        FENCE();
    for (; bytes - at >= VECTOR_BYTES; at += VECTOR_BYTES)
        reduce_vectors(out, sources, 0, count, count, at, divisor, 0, NULL, 1, NULL, with);
    if (at < bytes)
        reduce_rest(out, sources, count, at, bytes - at, divisor, with);
    copy_result(out, places, copies, 0, streaming ? start : stop);
    copy_result(out, places, copies, stop, bytes);
}

/* How vectors are opened and closed. */

INLINE void open_whole(u8 parts[2], u8 source) { parts[0] = source; }
INLINE u8 close_whole(const u8 parts[2], int divisor) { return (void)divisor, parts[0]; }
INLINE u8 divide_f32(u8 total, int divisor) { return divisor > 1 ? (u8)((f32)total / (float)divisor) : total; }
INLINE u8 divide_f64(u8 total, int divisor) { return divisor > 1 ? (u8)((f64)total / (double)divisor) : total; }
INLINE u8 close_f32(const u8 parts[2], int divisor) { return divide_f32(parts[0], divisor); }
INLINE u8 close_f64(const u8 parts[2], int divisor) { return divide_f64(parts[0], divisor); }

/* A bfloat16 is the upper half of a float32. The even ones of a vector become one part, the odd ones the other. */
INLINE void open_bfloat16(u8 parts[2], u8 source)
{
    parts[0] = (u8)((u32)source << 16);
    parts[1] = (u8)((u32)source & 0xFFFF0000u);
}

/* Adds just under half of the last bit that is kept, and that bit itself. A NaN has zeros below, so nothing is carried. */
INLINE u32 rounded_bfloat16(u8 total) { return (u32)total + 0x7FFFu + ((u32)total >> 16 & 1u); }

INLINE u8 close_bfloat16(const u8 parts[2], int divisor)
{
    u32 even = rounded_bfloat16(divide_f32(parts[0], divisor)), odd = rounded_bfloat16(divide_f32(parts[1], divisor));
    return (u8)(even >> 16 | (odd & 0xFFFF0000u));
}

#ifdef HALF_NARROW
INLINE void open_float16(u8 parts[2], u8 source)
{
    parts[0] = (u8)HALF_WIDEN_LOWER(source);
    parts[1] = (u8)HALF_WIDEN_UPPER(source);
}

INLINE u8 close_float16(const u8 parts[2], int divisor)
{
    return (u8)HALF_NARROW(divide_f32(parts[0], divisor), divide_f32(parts[1], divisor));
}
#else
enum {
    SIGN = 0x8000,
    HALF_INFINITY = 0x7C00,
    HALF_QUIET = 0x0200,
    EXPONENT = 0x7F800000,
    /* 2**16, from which on a float32 is infinite as a float16; the least normal float16, 2**-14; 0.5, whose last bit is
       worth as much as that of the float16 below 2**-14; and how far the exponents of the two are apart. */
    TOO_LARGE = 0x47800000,
    LEAST_NORMAL = 0x38800000,
    ONE_HALF = 0x3F000000,
    REBIAS = (127 - 15) << 23,
};

/* The bits of float16 to those of float32. Exponent and fraction, moved into their places, are 2**112 too small a number;
   but an exponent of ones, of infinity and NaN, has to become one of more ones. */
INLINE u8 widened_half(u32 half)
{
    u32 magnitude = (half & ~(uint32_t)SIGN & 0xFFFFu) << 13;
    u32 scaled = (u32)((f32)magnitude * 0x1p112f);
    return (u8)(scaled | ((u32)(magnitude >= (uint32_t)HALF_INFINITY << 13) & EXPONENT) | (half & SIGN) << 16);
}

/* A number below 2**-14 is rounded by the processor, in adding a half; others as in rounded_bfloat16. */
INLINE u32 narrowed_half(u8 total)
{
    u32 magnitude = (u32)total & 0x7FFFFFFFu;
    u32 nan = (u32)(magnitude > EXPONENT) & (HALF_QUIET | (magnitude >> 13 & 0x3FFu));
    u32 normal = (magnitude - REBIAS + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
    u32 small = (u32)((f32)magnitude + 0.5f) - ONE_HALF;
    u32 half = (u32)choose((u8)(magnitude < LEAST_NORMAL), (u8)small, (u8)normal);
    half = (u32)choose((u8)(magnitude >= TOO_LARGE), (u8)(nan | HALF_INFINITY), (u8)half);
    return half | ((u32)total >> 16 & SIGN);
}

INLINE void open_float16(u8 parts[2], u8 source)
{
    parts[0] = widened_half((u32)source & 0xFFFFu);
    parts[1] = widened_half((u32)source >> 16);
}

INLINE u8 close_float16(const u8 parts[2], int divisor)
{
    u32 even = narrowed_half(divide_f32(parts[0], divisor)), odd = narrowed_half(divide_f32(parts[1], divisor));
    return (u8)(even | odd << 16);
}
#endif

/* How vectors are combined. */

#define COMBINE(name, expression) \
    INLINE u8 name(u8 total, u8 next) { return (u8)(expression); }

#define ARITHMETIC(lane) \
    COMBINE(sum_of_##lane, (lane)total + (lane)next) \
    COMBINE(product_of_##lane, (lane)total * (lane)next)

#define ORDER(lane) \
    COMBINE(min_of_##lane, choose((u8)((lane)total < (lane)next), total, next)) \
    COMBINE(max_of_##lane, choose((u8)((lane)total > (lane)next), total, next))

#define ORDER_WITH_NAN(lane) \
    COMBINE(min_of_##lane, choose((u8)(((lane)total < (lane)next) | ((lane)total != (lane)total)), total, next)) \
    COMBINE(max_of_##lane, choose((u8)(((lane)total > (lane)next) | ((lane)total != (lane)total)), total, next))

/* Signed integers are added and multiplied as unsigned ones, which wrap to the same bits. */
ARITHMETIC(u16)
ARITHMETIC(u32)
ARITHMETIC(u64)
ARITHMETIC(f32)
ARITHMETIC(f64)
ORDER(i8)
ORDER(i16)
ORDER(i32)
ORDER(i64)
ORDER(u8)
ORDER(u16)
ORDER(u32)
ORDER(u64)
ORDER_WITH_NAN(f32)
ORDER_WITH_NAN(f64)
COMBINE(sum_of_u8, total + next)
/* Processors multiply no bytes: the even ones as words of which the lower half counts, the odd ones in the upper halves. */
COMBINE(product_of_u8, (((u16)total * (u16)next) & 0x00FF) | (((u16)total >> 8) * ((u16)next & 0xFF00)))
/* As in numpy, any byte but zero is true, and what comes of two of them is 0 or 1. */
COMBINE(min_of_bool, ((u8)(total != 0) & (u8)(next != 0)) & 1)
COMBINE(max_of_bool, (u8)((total | next) != 0) & 1)

/* Complex numbers as (real, imaginary) in neighbouring lanes: (a, b) (c, d) = (a c - b d, a d + b c), each product rounded
   on its own. To subtract is to add with the other sign. */
#define COMPLEX_PRODUCT(float_lane, lane, sign) \
    INLINE u8 complex_product_of_##float_lane(u8 total, u8 next) \
    { \
        lane first, second, swapped, negative; \
        for (unsigned i = 0; i < sizeof(lane) / sizeof first[0]; i++) { \
            first[i] = i & ~1u, second[i] = i | 1u, swapped[i] = i ^ 1u; \
            negative[i] = i & 1u ? 0 : sign; \
        } \
        float_lane by_real = (float_lane)__builtin_shuffle((lane)total, first) * (float_lane)next; \
        float_lane by_imaginary = \
            (float_lane)__builtin_shuffle((lane)total, second) * (float_lane)__builtin_shuffle((lane)next, swapped); \
        return (u8)(by_real + (float_lane)((lane)by_imaginary ^ negative)); \
    }

COMPLEX_PRODUCT(f32, u32, 0x80000000u)
COMPLEX_PRODUCT(f64, u64, 0x8000000000000000u)

/* The kernels themselves. */

#define KERNEL(name, item_bytes, parts, open, combine, close) \
    static void name(void *out, const void *const *sources, int count, size_t elements, int divisor, int streaming, \
                     void *const *copies) \
    { \
        const recipe with = {item_bytes, parts, open, combine, close}; \
        reduce(out, sources, count, elements * item_bytes, divisor, streaming, copies, with); \
    }

#define WHOLE(op, lane, item_bytes) KERNEL(op##_##lane, item_bytes, 1, open_whole, op##_of_##lane, close_whole)
#define WHOLE_ORDER(lane, item_bytes) WHOLE(min, lane, item_bytes) WHOLE(max, lane, item_bytes)
#define WHOLE_ARITHMETIC(lane, item_bytes) WHOLE(sum, lane, item_bytes) WHOLE(product, lane, item_bytes)
#define SHORT(op, dtype) KERNEL(op##_##dtype, 2, 2, open_##dtype, op##_of_f32, close_##dtype)
#define SHORTS(dtype) SHORT(sum, dtype) SHORT(min, dtype) SHORT(max, dtype) SHORT(product, dtype)

WHOLE_ORDER(bool, 1)
WHOLE_ORDER(i8, 1)
WHOLE_ORDER(i16, 2)
WHOLE_ORDER(i32, 4)
WHOLE_ORDER(i64, 8)
WHOLE_ORDER(u8, 1)
WHOLE_ORDER(u16, 2)
WHOLE_ORDER(u32, 4)
WHOLE_ORDER(u64, 8)
WHOLE_ORDER(f32, 4)
WHOLE_ORDER(f64, 8)
WHOLE_ARITHMETIC(u8, 1)
WHOLE_ARITHMETIC(u16, 2)
WHOLE_ARITHMETIC(u32, 4)
WHOLE_ARITHMETIC(u64, 8)
WHOLE(product, f32, 4)
WHOLE(product, f64, 8)
KERNEL(sum_f32, 4, 1, open_whole, sum_of_f32, close_f32)
KERNEL(sum_f64, 8, 1, open_whole, sum_of_f64, close_f64)
KERNEL(sum_c64, 8, 1, open_whole, sum_of_f32, close_f32)
KERNEL(sum_c128, 16, 1, open_whole, sum_of_f64, close_f64)
KERNEL(product_c64, 8, 1, open_whole, complex_product_of_f32, close_whole)
KERNEL(product_c128, 16, 1, open_whole, complex_product_of_f64, close_whole)
SHORTS(float16)
SHORTS(bfloat16)

#include "kernels_blocks.h"
#include "kernels_shorts.h"

const tb_codec CODECS[TB_DTYPES] = {
    [TB_FLOAT16] = {encode_float16, decode_float16},
    [TB_BFLOAT16] = {encode_bfloat16, decode_bfloat16},
    [TB_INT8_BLOCKS] = {encode_blocks, decode_blocks},
};

#define OF_FLOATS(op) \
    [TB_FLOAT16] = op##_float16, [TB_BFLOAT16] = op##_bfloat16, [TB_FLOAT32] = op##_f32, [TB_FLOAT64] = op##_f64
#define OF_COMPLEX(op) [TB_COMPLEX64] = op##_c64, [TB_COMPLEX128] = op##_c128
#define OF_INTEGERS(op, i8, i16, i32, i64) \
    [TB_INT8] = op##_##i8, [TB_INT16] = op##_##i16, [TB_INT32] = op##_##i32, [TB_INT64] = op##_##i64, \
    [TB_UINT8] = op##_u8, [TB_UINT16] = op##_u16, [TB_UINT32] = op##_u32, [TB_UINT64] = op##_u64

const tb_reduce TABLE[TB_OPS][TB_DTYPES] = {
    [TB_SUM] = {OF_INTEGERS(sum, u8, u16, u32, u64), OF_FLOATS(sum), OF_COMPLEX(sum), [TB_INT8_BLOCKS] = sum_blocks},
    [TB_MEAN] = {OF_FLOATS(sum), OF_COMPLEX(sum), [TB_INT8_BLOCKS] = sum_blocks},
    [TB_MIN] = {[TB_BOOL] = min_bool, OF_INTEGERS(min, i8, i16, i32, i64), OF_FLOATS(min)},
    [TB_MAX] = {[TB_BOOL] = max_bool, OF_INTEGERS(max, i8, i16, i32, i64), OF_FLOATS(max)},
    [TB_PRODUCT] = {OF_INTEGERS(product, u8, u16, u32, u64), OF_FLOATS(product), OF_COMPLEX(product)},
};
