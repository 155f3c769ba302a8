/* An engine's mapping of its board, from beginning to end; engine.h says what each call does. */
#define _GNU_SOURCE
#include "engine_operation.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { SPIN_FIRST_NS = 20000 };

/* How many processors this process may use; *only is the number of one that there is alone, and 1. */
static int processors(uint32_t *only)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    *only = 0;
    int count = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    for (int each = 0; count == 1 && each < CPU_SETSIZE; each++)
        if (CPU_ISSET(each, &set))
            *only = each + 1;
    return count;
}

static void *map_board(int file, size_t bytes, int positions)
{
    void *board = mmap(NULL, bytes, PROT_NONE, MAP_SHARED, file, 0);
    if (board == MAP_FAILED)
        return NULL;
    /* A program that locks all that it maps (mlockall) would have all pages made, of a stage that it may never use. */
    munlock(board, bytes);
    int error = mprotect(board, bytes, PROT_READ | PROT_WRITE) ? errno : 0;
    if (error || !tb_board_fits(board, bytes, positions)) {
        munmap(board, bytes);
        errno = error ? error : EINVAL;
        return NULL;
    }
    madvise(board, bytes, MADV_HUGEPAGE);
    madvise(board, bytes, MADV_DONTDUMP); /* That would fill the pages that are not there. */
    return board;
}

tb_engine *tb_engine_new(int file, size_t bytes, int positions, int position, int told)
{
    void *board = map_board(file, bytes, positions);
    tb_engine *engine = board ? calloc(1, sizeof *engine) : NULL;
    int error = engine ? 0 : errno;
    if (engine) {
        engine->turns.engine = engine;
        engine->turns.carry_out = tb_carry_out;
        engine->turns.choose = tb_choose_turn;
        engine->turns.cancel = tb_cancel;
        error = tb_turns_begin(&engine->turns, told);
    }
    if (error) {
        free(engine);
        if (board)
            munmap(board, bytes);
        errno = error;
        return NULL;
    }
    engine->board = board;
    engine->board_bytes = bytes;
    engine->stage_bytes = tb_stage_bytes(bytes, positions);
    engine->positions = positions;
    engine->position = position;
    engine->spin_ns = SPIN_FIRST_NS;
    engine->patience_ns = TB_PATIENCE_MAX_NS;
    uint32_t only;
    engine->crowded = positions > processors(&only);
    atomic_store(&tb_slot_of(board, position)->bound, only);
    return engine;
}

void tb_engine_close(tb_engine *engine)
{
    /* A forked child's board is the parent's. */
    if (!tb_turns_forked(&engine->turns))
        tb_board_end(engine->board, engine->positions, TB_GONE);
    tb_turns_stop(&engine->turns);
}

void tb_engine_free(tb_engine *engine)
{
    tb_undo_free(&engine->undo);
    tb_turns_free(&engine->turns);
    munmap(engine->board, engine->board_bytes);
    free(engine);
}
