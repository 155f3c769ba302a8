/* Which kernels run: the best that the processor has, or what TENSORBUS_KERNELS allows. */
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

typedef const tb_reduce (*table)[TB_DTYPES];

typedef struct {
    const char *name;
    table kernels;
    const tb_codec *codecs;
} level;

extern const tb_reduce tb_kernels_plain[TB_OPS][TB_DTYPES];
extern const tb_codec tb_codecs_plain[TB_DTYPES];

#if defined(__x86_64__)
extern const tb_reduce tb_kernels_avx2[TB_OPS][TB_DTYPES], tb_kernels_avx512[TB_OPS][TB_DTYPES];
extern const tb_codec tb_codecs_avx2[TB_DTYPES], tb_codecs_avx512[TB_DTYPES];
/* From the best to the one that runs anywhere. */
static const level LEVELS[] = {{"avx512", tb_kernels_avx512, tb_codecs_avx512},
                               {"avx2", tb_kernels_avx2, tb_codecs_avx2},
                               {"plain", tb_kernels_plain, tb_codecs_plain}};
#elif defined(__ARM_NEON) && defined(__aarch64__)
static const level LEVELS[] = {{"neon", tb_kernels_plain, tb_codecs_plain}};
#else
static const level LEVELS[] = {{"plain", tb_kernels_plain, tb_codecs_plain}};
#endif

enum { COUNT = sizeof LEVELS / sizeof LEVELS[0] };

/* Whether the processor has the instructions, and the system keeps their registers, which the built-in asks too. */
static int is_here(const level *candidate)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (candidate->kernels == tb_kernels_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("f16c");
    if (candidate->kernels == tb_kernels_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
#endif
    return candidate->kernels != NULL;
}

static const level *named(const char *name)
{
    for (int i = 0; name && i < COUNT; i++)
        if (!strcmp(LEVELS[i].name, name))
            return &LEVELS[i];
    return NULL;
}

static const level *best(void)
{
    const level *from = named(getenv("TENSORBUS_KERNELS"));
    for (from = from ? from : LEVELS; from < LEVELS + COUNT - 1; from++)
        if (is_here(from))
            break;
    return from;
}

/* Threads that ask for the first time at once find the same. */
static const level *in_use(void)
{
    static const level *chosen;
    const level *found = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
    if (!found) {
        found = best();
        __atomic_store_n(&chosen, found, __ATOMIC_RELAXED);
    }
    return found;
}

static tb_reduce kernel_of(const level *from, int op, int dtype)
{
    if (op < 0 || op >= TB_OPS || dtype < 0 || dtype >= TB_DTYPES)
        return NULL;
    return from->kernels[op][dtype];
}

tb_reduce tb_reduce_kernel(int op, int dtype) { return kernel_of(in_use(), op, dtype); }

const char *tb_kernels_level(void) { return in_use()->name; }

static const tb_codec *codec_of(const level *from, int dtype)
{
    return dtype < 0 || dtype >= TB_DTYPES || !from->codecs[dtype].encode ? NULL : &from->codecs[dtype];
}

const tb_codec *tb_codec_for(int dtype) { return codec_of(in_use(), dtype); }

tb_reduce tb_reduce_kernel_of(const char *name, int op, int dtype)
{
    const level *from = named(name);
    return from && is_here(from) ? kernel_of(from, op, dtype) : NULL;
}

const tb_codec *tb_codec_of(const char *name, int dtype)
{
    const level *from = named(name);
    return from && is_here(from) ? codec_of(from, dtype) : NULL;
}
