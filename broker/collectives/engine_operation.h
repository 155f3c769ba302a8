/* What an operation knows while it is carried out: engine_operation.c takes it through its phases, engine_waiting.c
   waits for the others, engine_verdict.c says how it has ended, engine_pieces.c moves its chunks. */
#ifndef TENSORBUS_OPERATION_H
#define TENSORBUS_OPERATION_H

#include "engine.h"

enum {
    TB_SLICE_NS = 50000000, /* Python looks at its signals at least as often as twice this. */
};

typedef struct {
    tb_engine *engine;
    tb_task *task;
    tb_slot *own;
    uint64_t sequence;
    uint64_t deadline_ns;
    uint64_t pulse_ns; /* When to ask `interrupt` again. */
    int gathering;     /* Not all have come, as far as is known here; looked at when all of a held array is staged. */
    int mismatched;    /* The claims of those that have come differ: the deadline is soon. */
    size_t chunks;     /* Of the array. */
    size_t places;     /* Of the stage, that are used in turn. */
    size_t touched;    /* Chunks of the target that may have changed. */
    int held;          /* All of the array fits into the stages: nothing changes before the verdict. */
    int stages_past_caches; /* The stages are written past the processor's caches, */
    int result_past_caches; /* and the targets. */
    int naps;          /* So many waits are short sleeps that nobody has to end; see engine_direct.c. */
} tb_operation;

/* What a counter holds when so many chunks of an operation are done. */
static inline uint64_t tb_mark(const tb_operation *operation, size_t chunks)
{
    return operation->sequence << TB_CHUNK_BITS | chunks;
}

/* Ends an operation to which something has happened, if something has: looked for at times (engine_waiting.c). */
int tb_glance(tb_operation *operation, tb_counter counter, uint64_t value);

/* Waits until a position's counter has a value; not 0 when the operation has ended before. */
int tb_wait_for(tb_operation *operation, int position, tb_counter counter, uint64_t value);

/* The same of all others. */
int tb_wait_for_all(tb_operation *operation, tb_counter counter, uint64_t value);

/* Whether one that has come asks for something else than this position. */
int tb_claims_differ(const tb_operation *operation);

/* A bit for each. */
uint64_t tb_all_positions(const tb_operation *operation);

/* Gives the verdict that it is done, if there is none; 0 if it is. */
int tb_commit(tb_operation *operation);

/* The number of chunks that an operation moves in, and where its data lie in them. */
size_t tb_chunks(const tb_operation *operation);

/* Has the system make the pages of a chunk's place on the own stage, if this position is to write there and they have not
   been made; 0 if it has no memory. To write to one that it cannot make would end the process. */
int tb_reserve_stage(tb_operation *operation, size_t chunk);

/* Copies what the others need of a chunk of the own array into the own stage. */
void tb_stage(tb_operation *operation, size_t chunk);

/* Reduces the own part of a chunk from all stages. */
void tb_reduce_chunk(tb_operation *operation, size_t chunk);

/* Copies a chunk of the result from all stages into the target. */
void tb_collect(tb_operation *operation, size_t chunk);

/* Copies what a chunk changes of the target to where it can be fetched back from, and all that may have changed back. */
void tb_remember(tb_operation *operation, size_t chunk);
void tb_restore(tb_operation *operation);

/* Whether the arrays of all positions lie at the same place of memory that all map; once all have come (engine_direct.c). */
int tb_is_direct(const tb_operation *operation);

/* Reduces such arrays, together with the others; returns what the operation has ended with, 0 for well. */
int tb_move_direct(tb_operation *operation);

/* The whole of an operation whose arrays lie in the rows. */
void tb_write_row(tb_operation *operation);
void tb_finish_rows(tb_operation *operation);

/* Carries one operation out (engine_operation.c); returns its status. */
int tb_carry_out(void *engine, tb_task *task);

/* Has an operation that is cancelled fail, if it has begun and has no verdict. */
void tb_cancel(void *engine, tb_task *task);

/* Which of the operations that wait is next (engine_turn.c). */
tb_task *tb_choose_turn(void *engine);

/* Says which call the operation of a turn was, before its verdict fails it. */
void tb_settle_turn(tb_engine *engine, uint64_t sequence, uint64_t call);

/* Whether an array of the caller's changes before the verdict, so that it must be fetched back after a failure. */
static inline int tb_changes_early(const tb_operation *operation)
{
    return operation->task->target_bytes && !operation->task->scratch && !operation->held;
}

#endif
