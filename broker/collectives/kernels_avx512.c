/* The kernels for x86-64 with the AVX-512 of servers since 2017 (F, BW, DQ, VL). */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")
#include <immintrin.h>

#define TABLE tb_kernels_avx512
#define CODECS tb_codecs_avx512
#define VECTOR_BYTES 64
#define STREAM(to, v) _mm512_stream_si512((__m512i *)(to), (__m512i)(v))
#define FENCE() _mm_sfence()
#define HALF_WIDEN_LOWER(v) _mm512_cvtph_ps(_mm512_castsi512_si256((__m512i)(v)))
#define HALF_WIDEN_UPPER(v) _mm512_cvtph_ps(_mm512_extracti64x4_epi64((__m512i)(v), 1))
#define NARROW(v) _mm512_cvtps_ph((__m512)(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define HALF_NARROW(lower, upper) _mm512_inserti64x4(_mm512_castsi256_si512(NARROW(lower)), NARROW(upper), 1)
#include "kernels_level.h"
#endif
