/* All-reduce in memory that all ranks share, see limit.py. */
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { RANKS_MAX = 64, LINE_BYTES = 64, PIECE_BYTES = 64 << 10, TURNS = 2000 };

typedef void (*reduce)(void *out, const void *const *sources, int count, size_t elements, int divisor, int streaming,
                       void *const *copies);

typedef struct {
    _Alignas(2 * LINE_BYTES) _Atomic uint64_t arrived;
} flag;

void limit_barrier(flag *flags, int rank, int ranks, uint64_t turn)
{
    atomic_store_explicit(&flags[rank].arrived, turn, memory_order_release);
    for (int other = 0; other < ranks; other++)
        for (int turns = 0; atomic_load_explicit(&flags[other].arrived, memory_order_acquire) < turn; turns++) {
            if (turns > TURNS)
                sched_yield();
#if defined(__x86_64__)
            else
                __builtin_ia32_pause();
#endif
        }
}

/* Each rank reduces its part of all arrays, piece by piece, into its own array and from there into the others; or, where there
   are `results`, from the registers past the caches into all of these. */
void limit_all_reduce(flag *flags, int rank, int ranks, uint64_t turn, unsigned char *const *arrays,
                      unsigned char *const *results, size_t bytes, size_t item_bytes, reduce kernel)
{
    size_t step = (bytes / ranks + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES, start = rank * step, stop = start + step;
    if (stop > bytes || rank == ranks - 1)
        stop = bytes;
    limit_barrier(flags, rank, ranks, turn);
    for (; start < stop; start += PIECE_BYTES) {
        size_t piece = stop - start < PIECE_BYTES ? stop - start : PIECE_BYTES;
        const void *sources[RANKS_MAX];
        void *targets[RANKS_MAX];
        for (int other = 0; other < ranks; other++) {
            sources[other] = arrays[other] + start;
            targets[other] = results ? results[other] + start : NULL;
        }
        if (results) {
            kernel(targets[0], sources, ranks, piece / item_bytes, 1, ranks, targets + 1);
            continue;
        }
        kernel(arrays[rank] + start, sources, ranks, piece / item_bytes, 1, 0, NULL);
        for (int other = 0; other < ranks; other++)
            if (other != rank)
                memcpy(arrays[other] + start, arrays[rank] + start, piece);
    }
    limit_barrier(flags, rank, ranks, turn + 1);
}
