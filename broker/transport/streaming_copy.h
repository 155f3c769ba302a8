/* Copies memory past the processor's caches, where it has such stores (SSE2): the line that is written need not be read
   first, and what others still have in the caches stays there. Intel 64 and IA-32 Optimization Manual, "Nontemporal Stores". */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>

enum { LINE_BYTES = 64, AHEAD_BYTES = 512 };

static void streaming_copy(unsigned char *to, const unsigned char *from, size_t size)
{
    size_t head = -(uintptr_t)to % LINE_BYTES;
    if (head > size)
        head = size;
    memcpy(to, from, head);
    to += head, from += head, size -= head;
    for (; size >= LINE_BYTES; to += LINE_BYTES, from += LINE_BYTES, size -= LINE_BYTES) {
        __m128i part[4];
        _mm_prefetch((const char *)from + AHEAD_BYTES, _MM_HINT_NTA);
        for (int i = 0; i < 4; i++)
            part[i] = _mm_loadu_si128((const __m128i *)from + i);
        for (int i = 0; i < 4; i++)
            _mm_stream_si128((__m128i *)to + i, part[i]);
    }
    _mm_sfence();
    memcpy(to, from, size);
}
#else
static void streaming_copy(unsigned char *to, const unsigned char *from, size_t size)
{
    memcpy(to, from, size);
}
#endif
