/* Whether positions write what others read into their caches or past them.

   What lies in another processor's cache is read fast when the two share one, and very slowly when they do not: then it is
   better in memory. Which of the two a machine is can change while it runs, as where virtual processors run is their host's
   choice. So it is measured: position 0 takes the time of some chunks of each way now and then, in operations that
   are carried out anyway, and says on the board which was faster. The others follow; nothing but speed depends on it. */
#include "engine_operation.h"

enum {
    WINDOW_CHUNKS = 32,
    SKIPPED_CHUNKS = 4,        /* Of a window: in them the others still follow. */
    TRIAL_AFTER_NS = 100000000 /* The slower way is tried again so long after it was last in use. */
};

static void choose(tb_engine *engine, uint64_t now)
{
    tb_pace *pace = &engine->pace;
    int best = pace->chunk_ns[1] < pace->chunk_ns[0], other = !best;
    pace->way = pace->chunk_ns[other] == 0 || now - pace->tried_ns[other] > TRIAL_AFTER_NS ? other : best;
    pace->tried_ns[pace->way] = now;
    atomic_store_explicit(&tb_slot_of(engine->board, 0)->past_caches, pace->way, memory_order_relaxed);
}

void tb_choose_stores(tb_operation *operation, size_t chunk)
{
    tb_engine *engine = operation->engine;
    tb_pace *pace = &engine->pace;
    if (!engine->position && chunk + WINDOW_CHUNKS <= operation->chunks) {
        size_t place = chunk % WINDOW_CHUNKS;
        if (place == 0 || place == SKIPPED_CHUNKS) {
            uint64_t now = tb_now_ns();
            if (place == SKIPPED_CHUNKS)
                pace->since_ns = now;
            else {
                if (chunk)
                    pace->chunk_ns[pace->way] = (now - pace->since_ns) / (WINDOW_CHUNKS - SKIPPED_CHUNKS) + 1;
                choose(engine, now);
            }
        }
    }
    operation->past_caches =
        atomic_load_explicit(&tb_slot_of(engine->board, 0)->past_caches, memory_order_relaxed) != 0;
}
