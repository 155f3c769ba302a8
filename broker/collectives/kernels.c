/* Sums and means of float32 and float64. */
#include "kernels.h"

#include <string.h>

enum { SUM = 0, MEAN = 1, FLOAT32 = 11, FLOAT64 = 12, BLOCK = 1024 };

#define REDUCTION(name, type)                                                                                        \
    __attribute__((target_clones("avx512f", "avx2", "default"))) static void name(                                   \
        void *out, const void *const *sources, int count, size_t elements, int divisor, int streaming)               \
    {                                                                                                                \
        type block[BLOCK];                                                                                           \
        for (size_t start = 0; start < elements; start += BLOCK) {                                                   \
            size_t stop = elements - start < BLOCK ? elements - start : BLOCK;                                       \
            memcpy(block, (const type *)sources[0] + start, stop * sizeof(type));                                    \
            for (int source = 1; source < count; source++)                                                           \
                for (size_t i = 0; i < stop; i++)                                                                    \
                    block[i] += ((const type *)sources[source])[start + i];                                          \
            if (divisor > 1)                                                                                         \
                for (size_t i = 0; i < stop; i++)                                                                    \
                    block[i] /= (type)divisor;                                                                       \
            memcpy((type *)out + start, block, stop * sizeof(type));                                                 \
        }                                                                                                            \
    }

REDUCTION(mean_float32, float)
REDUCTION(mean_float64, double)

static void sum_float32(void *out, const void *const *sources, int count, size_t elements, int divisor, int streaming)
{
    mean_float32(out, sources, count, elements, 1, streaming);
}

static void sum_float64(void *out, const void *const *sources, int count, size_t elements, int divisor, int streaming)
{
    mean_float64(out, sources, count, elements, 1, streaming);
}

tb_reduce tb_reduce_kernel(int op, int dtype)
{
    if (dtype == FLOAT32)
        return op == SUM ? sum_float32 : op == MEAN ? mean_float32 : NULL;
    if (dtype == FLOAT64)
        return op == SUM ? sum_float64 : op == MEAN ? mean_float64 : NULL;
    return NULL;
}
