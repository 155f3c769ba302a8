/* One position's part in the operations on a board (board.h), which are carried out in turns (turns.h),
   the urgent ones first (engine_turn.c). */
#ifndef TENSORBUS_ENGINE_H
#define TENSORBUS_ENGINE_H

#include "board.h"
#include "undo.h"

enum { TB_PATIENCE_MAX_NS = 2000000 };

typedef struct {
    tb_turns turns;
    tb_board *board;
    size_t board_bytes, stage_bytes;
    size_t reserved_bytes; /* Of the own stage: these pages are there. */
    int position, positions;
    uint64_t sequence; /* Of the last operation that was begun. */
    uint64_t spin_ns;
    uint64_t patience_ns; /* As spin_ns, in long operations. */
    int crowded; /* More positions than processors: to spin would only keep others from running. */
    int sleepy;  /* So many waits are to be slept through: another thread computes on this processor. */
    int sleep_waits; /* As many the next time that this shows. */
    tb_undo undo;
} tb_engine;

/* An engine on the board in a file, of which it makes a mapping of its own; NULL with an errno: EINVAL when the file holds
   no board of so many positions. `told` is as for tb_turns_begin. */
tb_engine *tb_engine_new(int file, size_t bytes, int positions, int position, int told);

/* No operation begins any more, those that have no verdict end, and so does the board unless this process is a forked
   child. Returns when the thread has ended. */
void tb_engine_close(tb_engine *engine);

/* Frees a closed engine that nobody is in. */
void tb_engine_free(tb_engine *engine);

#endif
