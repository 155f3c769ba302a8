/* Blocks of 8-bit numbers (blocks.py has what they are), for one kind of processor; kernels_level.h includes it.

   All 64 bytes of a block are taken as lanes, so that loops are of whole vectors: the first four, which are the scale, give
   rubbish, which is put out before it can matter. Loops have no order that could change a bit, and gcc makes vectors of
   them. */

enum { BLOCK_LANES = 64, SCALE_LANES = 4, BLOCK_LIMIT = 127 };

/* What is less is taken for zero: its inverse would not be finite. */
static const float LEAST_LARGEST = 1e-30f;
/* Added and subtracted, it rounds a float below 2**22 to a whole number, ties to even. */
static const float ROUNDER = 12582912.0f;
static const uint32_t MAGNITUDE = 0x7FFFFFFFu, INFINITE = 0x7F800000u, NO_NUMBER = 0x7FC00000u;

typedef struct {
    float numbers[BLOCK_LANES];
} lanes;

typedef struct {
    float scale, inverse;
} scaling;

INLINE float scale_of(const unsigned char *block)
{
    float scale;
    memcpy(&scale, block, sizeof scale);
    return scale;
}

INLINE void open_block(const unsigned char *block, lanes *out)
{
    float scale = scale_of(block);
    for (int i = 0; i < BLOCK_LANES; i++)
        out->numbers[i] = (float)(int8_t)block[i] * scale;
}

/* The scale by which the largest number becomes 127; NaN if one is not finite, so that nobody takes it for a number. */
INLINE scaling scaling_of(lanes *of)
{
    uint32_t largest = 0;
    for (int i = 0; i < SCALE_LANES; i++)
        of->numbers[i] = 0;
    for (int i = 0; i < BLOCK_LANES; i++) {
        uint32_t bits;
        memcpy(&bits, &of->numbers[i], sizeof bits);
        bits &= MAGNITUDE;
        largest = bits > largest ? bits : largest;
    }
    float value;
    if (largest >= INFINITE) {
        memcpy(&value, &NO_NUMBER, sizeof value);
        return (scaling){value, 0};
    }
    memcpy(&value, &largest, sizeof value);
    return value < LEAST_LARGEST ? (scaling){0, 0} : (scaling){value / BLOCK_LIMIT, BLOCK_LIMIT / value};
}

INLINE void close_block(unsigned char *block, float scale, const int8_t *numbers)
{
    memcpy(block, numbers, BLOCK_LANES);
    memcpy(block, &scale, sizeof scale);
}

/* To the nearest. */
INLINE void encode_block(unsigned char *block, lanes *values)
{
    scaling by = scaling_of(values);
    int8_t numbers[BLOCK_LANES];
    for (int i = 0; i < BLOCK_LANES; i++) {
        float rounded = by.inverse ? values->numbers[i] * by.inverse + ROUNDER - ROUNDER : 0;
        numbers[i] = (int8_t)(int32_t)rounded;
    }
    close_block(block, by.scale, numbers);
}

/* Up or down by chance, so that on the average nothing is lost: what one rank has sent is small beside the sum, and would
   always be rounded away. The chance comes out of the number itself, so that it is the same in every run. */
INLINE void encode_sum(unsigned char *block, lanes *sum)
{
    scaling by = scaling_of(sum);
    int8_t numbers[BLOCK_LANES];
    for (int i = 0; i < BLOCK_LANES; i++) {
        float scaled = by.inverse ? sum->numbers[i] * by.inverse : 0, whole = scaled + ROUNDER - ROUNDER;
        whole -= whole > scaled ? 1.0f : 0.0f;
        uint32_t mixed;
        memcpy(&mixed, &scaled, sizeof mixed);
        mixed = (mixed + (uint32_t)i) * 0x9E3779B1u;
        mixed = (mixed ^ mixed >> 15) * 0x85EBCA77u;
        mixed ^= mixed >> 13;
        float chance = (float)(int32_t)(mixed >> 8) * 0x1p-24f;
        whole += scaled - whole > chance ? 1.0f : 0.0f;
        numbers[i] = (int8_t)(int32_t)(whole < BLOCK_LIMIT ? whole : (float)BLOCK_LIMIT);
    }
    close_block(block, by.scale, numbers);
}

static void sum_blocks(void *out, const void *const *sources, int count, size_t elements, int divisor, int streaming,
                       void *const *copies)
{
    size_t bytes = elements * BLOCK_LANES;
    if (count == 1 && divisor == 1)
        memmove(out, sources[0], bytes);
    for (size_t at = 0; (count > 1 || divisor > 1) && at < bytes; at += BLOCK_LANES) {
        lanes total, next;
        open_block((const unsigned char *)sources[0] + at, &total);
        for (int source = 1; source < count; source++) {
            open_block((const unsigned char *)sources[source] + at, &next);
            for (int i = 0; i < BLOCK_LANES; i++)
                total.numbers[i] += next.numbers[i];
        }
        for (int i = 0; i < BLOCK_LANES && divisor > 1; i++)
            total.numbers[i] /= (float)divisor;
        encode_sum((unsigned char *)out + at, &total);
    }
    copy_result(out, streaming, copies, 0, bytes);
}

INLINE void encode_one(unsigned char *block, const float *array, const float *carried, float *lost, size_t part)
{
    lanes values = {{0}}, sent;
    float *numbers = values.numbers + SCALE_LANES;
    memcpy(numbers, array, part * sizeof *array);
    for (size_t i = 0; carried && i < part; i++)
        numbers[i] += carried[i];
    encode_block(block, &values);
    if (!lost)
        return;
    /* What is no number is told, and not carried on: it would never end. */
    open_block(block, &sent);
    int finite = scale_of(block) == scale_of(block);
    for (size_t i = 0; i < part; i++)
        lost[i] = finite ? numbers[i] - sent.numbers[SCALE_LANES + i] : 0;
}

static void encode_blocks(void *out, const float *array, const float *carried, float *lost, size_t elements)
{
    unsigned char *block = out;
    size_t at = 0;
    for (; elements - at >= TB_BLOCK_ELEMENTS; at += TB_BLOCK_ELEMENTS, block += BLOCK_LANES)
        encode_one(block, array + at, carried ? carried + at : NULL, lost ? lost + at : NULL, TB_BLOCK_ELEMENTS);
    if (at < elements)
        encode_one(block, array + at, carried ? carried + at : NULL, lost ? lost + at : NULL, elements - at);
}

static void decode_blocks(float *array, const void *blocks, size_t elements)
{
    const unsigned char *block = blocks;
    for (size_t at = 0; at < elements; at += TB_BLOCK_ELEMENTS, block += BLOCK_LANES) {
        size_t part = elements - at < TB_BLOCK_ELEMENTS ? elements - at : TB_BLOCK_ELEMENTS;
        lanes values;
        open_block(block, &values);
        memcpy(array + at, values.numbers + SCALE_LANES, part * sizeof *array);
    }
}
