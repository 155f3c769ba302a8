/* float32 to float16 and bfloat16 and back, for one kind of processor; kernels_level.h includes it. A stretch is as many
   floats as a vector has of the short ones: two vectors of float32. Loops over lanes are vectors to gcc. */

enum { STRETCH = VECTOR_BYTES / 2 };

typedef struct {
    u8 lower, upper;
} two;

typedef union {
    two vectors;
    float numbers[STRETCH];
    uint32_t bits[STRETCH];
} stretch;

typedef u8 (*narrow_function)(const stretch *from);
typedef void (*widen_function)(u8 shorts, stretch *to);

/* Of the float32 before `limit` no bits but the upper ones count: finite numbers are brought within it. */
INLINE void bring_within(stretch *numbers, uint32_t limit)
{
    for (int i = 0; i < STRETCH; i++) {
        uint32_t magnitude = numbers->bits[i] & MAGNITUDE, sign = numbers->bits[i] & ~MAGNITUDE;
        uint32_t within = magnitude > limit && magnitude < INFINITE ? limit : magnitude;
        numbers->bits[i] = sign | within;
    }
}

INLINE u8 narrow_bfloat16(const stretch *from)
{
    uint16_t shorts[STRETCH];
    u8 packed;
    for (int i = 0; i < STRETCH; i++) {
        uint32_t bits = from->bits[i], magnitude = bits & MAGNITUDE;
        uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
        shorts[i] = (uint16_t)(magnitude > INFINITE ? NO_NUMBER >> 16 : rounded);
    }
    memcpy(&packed, shorts, sizeof packed);
    return packed;
}

INLINE void widen_bfloat16(u8 shorts, stretch *to)
{
    uint16_t packed[STRETCH];
    memcpy(packed, &shorts, sizeof packed);
    for (int i = 0; i < STRETCH; i++)
        to->bits[i] = (uint32_t)packed[i] << 16;
}

#ifdef HALF_NARROW
INLINE u8 narrow_float16(const stretch *from) { return (u8)HALF_NARROW(from->vectors.lower, from->vectors.upper); }

INLINE void widen_float16(u8 shorts, stretch *to)
{
    to->vectors.lower = (u8)HALF_WIDEN_LOWER(shorts);
    to->vectors.upper = (u8)HALF_WIDEN_UPPER(shorts);
}
#else
INLINE u8 narrow_float16(const stretch *from)
{
    stretch halves = {{(u8)narrowed_half(from->vectors.lower), (u8)narrowed_half(from->vectors.upper)}};
    uint16_t shorts[STRETCH];
    u8 packed;
    for (int i = 0; i < STRETCH; i++)
        shorts[i] = (uint16_t)halves.bits[i];
    memcpy(&packed, shorts, sizeof packed);
    return packed;
}

INLINE void widen_float16(u8 shorts, stretch *to)
{
    uint16_t packed[STRETCH];
    memcpy(packed, &shorts, sizeof packed);
    for (int i = 0; i < STRETCH; i++)
        to->bits[i] = packed[i];
    to->vectors.lower = widened_half((u32)to->vectors.lower);
    to->vectors.upper = widened_half((u32)to->vectors.upper);
}
#endif

/* `part` floats, of which a stretch is not more. Called with as many as it is, it is made of whole vectors. */
INLINE void encode_stretch(unsigned char *out, const float *array, const float *carried, float *lost, size_t part,
                           uint32_t limit, narrow_function narrow, widen_function widen)
{
    stretch wanted = {{{0}, {0}}}, within, sent;
    memcpy(wanted.numbers, array, part * sizeof *array);
    for (size_t i = 0; carried && i < part; i++)
        wanted.numbers[i] += carried[i];
    within = wanted;
    bring_within(&within, limit);
    u8 shorts = narrow(&within);
    memcpy(out, &shorts, 2 * part);
    if (!lost)
        return;
    widen(shorts, &sent);
    for (size_t i = 0; i < part; i++)
        lost[i] = (wanted.bits[i] & MAGNITUDE) < INFINITE ? wanted.numbers[i] - sent.numbers[i] : 0;
}

INLINE void encode_shorts(unsigned char *out, const float *array, const float *carried, float *lost, size_t elements,
                          uint32_t limit, narrow_function narrow, widen_function widen)
{
    size_t at = 0;
    for (; elements - at >= STRETCH; at += STRETCH)
        encode_stretch(out + 2 * at, array + at, carried ? carried + at : NULL, lost ? lost + at : NULL, STRETCH, limit,
                       narrow, widen);
    if (at < elements)
        encode_stretch(out + 2 * at, array + at, carried ? carried + at : NULL, lost ? lost + at : NULL, elements - at,
                       limit, narrow, widen);
}

INLINE void decode_stretch(float *array, const unsigned char *from, size_t part, widen_function widen)
{
    u8 shorts = {0};
    stretch wide;
    memcpy(&shorts, from, 2 * part);
    widen(shorts, &wide);
    memcpy(array, wide.numbers, part * sizeof *array);
}

INLINE void decode_shorts(float *array, const unsigned char *from, size_t elements, widen_function widen)
{
    size_t at = 0;
    for (; elements - at >= STRETCH; at += STRETCH)
        decode_stretch(array + at, from + 2 * at, STRETCH, widen);
    if (at < elements)
        decode_stretch(array + at, from + 2 * at, elements - at, widen);
}

#define SHORT_CODEC(dtype, limit) \
    static void encode_##dtype(void *out, const float *array, const float *carried, float *lost, size_t elements) \
    { \
        encode_shorts(out, array, carried, lost, elements, limit, narrow_##dtype, widen_##dtype); \
    } \
    static void decode_##dtype(float *array, const void *encoded, size_t elements) \
    { \
        decode_shorts(array, encoded, elements, widen_##dtype); \
    }

/* The largest finite numbers of each: 65504, and 2**128 less a 256th. */
SHORT_CODEC(float16, 0x477FE000u)
SHORT_CODEC(bfloat16, 0x7F7F0000u)
