/* The kernels for every processor: SSE2 on x86-64, NEON on 64-bit ARM, and on others what the compiler makes of vectors. */
#include <string.h>

#define TABLE tb_kernels_plain
#define CODECS tb_codecs_plain
#define VECTOR_BYTES 16
#if defined(__SSE2__)
#include <emmintrin.h>
#define STREAM(to, v) _mm_stream_si128((__m128i *)(to), (__m128i)(v))
#define FENCE() _mm_sfence()
#else
#define STREAM(to, v) memcpy(to, &(v), VECTOR_BYTES)
#define FENCE() (void)0
#endif
#if defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define HALF_WIDEN_LOWER(v) vcvt_f32_f16(vget_low_f16((float16x8_t)(v)))
#define HALF_WIDEN_UPPER(v) vcvt_high_f32_f16((float16x8_t)(v))
#define HALF_NARROW(lower, upper) vcvt_high_f16_f32(vcvt_f16_f32((float32x4_t)(lower)), (float32x4_t)(upper))
#endif
#include "kernels_level.h"
