/* The kernels for x86-64 with AVX2 and F16C, which is most since 2013. */
#if defined(__x86_64__)
#pragma GCC target("avx2,f16c")
#include <immintrin.h>

#define TABLE tb_kernels_avx2
#define CODECS tb_codecs_avx2
#define VECTOR_BYTES 32
#define STREAM(to, v) _mm256_stream_si256((__m256i *)(to), (__m256i)(v))
#define FENCE() _mm_sfence()
#define HALF_WIDEN_LOWER(v) _mm256_cvtph_ps(_mm256_castsi256_si128((__m256i)(v)))
#define HALF_WIDEN_UPPER(v) _mm256_cvtph_ps(_mm256_extracti128_si256((__m256i)(v), 1))
#define NARROW(v) _mm256_cvtps_ph((__m256)(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define HALF_NARROW(lower, upper) _mm256_inserti128_si256(_mm256_castsi128_si256(NARROW(lower)), NARROW(upper), 1)
#include "kernels_level.h"
#endif
