/* What an operation knows while it is carried out: engine_operation.c takes it through its phases, engine_pieces.c moves
   its chunks. */
#ifndef TENSORBUS_OPERATION_H
#define TENSORBUS_OPERATION_H

#include "engine.h"

typedef struct {
    tb_engine *engine;
    tb_task *task;
    tb_slot *own;
    uint64_t sequence;
    uint64_t deadline_ns;
    uint64_t pulse_ns; /* When to ask `interrupt` again. */
    int gathering;     /* Not all have come, as far as is known here. */
    int mismatched;    /* The claims of those that have come differ: the deadline is soon. */
    size_t chunks;     /* Of the array. */
    size_t places;     /* Of the stage, that are used in turn. */
    size_t touched;    /* Chunks of the target that may have changed. */
    uint64_t in_place; /* Of the chunks that were reduced last, a bit each, whether they were so in place. */
    int past_caches;   /* The present chunk goes to the stage past the processor's caches. */
    int naps;          /* So many waits are short sleeps that nobody has to end; see engine_direct.c. */
} tb_operation;

/* What a counter holds when so many chunks of an operation are done. */
static inline uint64_t tb_mark(const tb_operation *operation, size_t chunks)
{
    return operation->sequence << TB_CHUNK_BITS | chunks;
}

/* Ends an operation to which something has happened, if something has: looked for at times (engine_operation.c). */
int tb_glance(tb_operation *operation, tb_counter counter, uint64_t value);

/* Waits until a position's counter has a value; not 0 when the operation has ended before. */
int tb_wait_for(tb_operation *operation, int position, tb_counter counter, uint64_t value);

/* Gives the verdict that it is done, if there is none; 0 if it is. */
int tb_commit(tb_operation *operation);

/* The number of chunks that an operation moves in, and where its data lie in them. */
size_t tb_chunks(const tb_operation *operation);

/* Chooses how a chunk is to be written to the stage (engine_stores.c). */
void tb_choose_stores(tb_operation *operation, size_t chunk);

/* Copies what the others need of a chunk of the own array into the own stage. */
void tb_stage(tb_operation *operation, size_t chunk);

/* Reduces the own part of a chunk from all stages. */
void tb_reduce_chunk(tb_operation *operation, size_t chunk);

/* Copies a chunk of the result from all stages into the target. */
void tb_collect(tb_operation *operation, size_t chunk);

/* Copies what a chunk changes of the target to where it can be fetched back from, and all that may have changed back. */
void tb_remember(tb_operation *operation, size_t chunk);
void tb_restore(tb_operation *operation);

/* Past the caches, the own part of a long array is reduced where it belongs, and copied to the stage from there. */
static inline int tb_reduces_in_place(const tb_operation *operation)
{
    const tb_task *task = operation->task;
    return operation->past_caches && operation->chunks > TB_STAGE_CHUNKS && task->kind != TB_REDUCE_SCATTER &&
           task->target_bytes && !task->targets;
}

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

/* Whether an array of the caller's changes before the verdict, so that it must be fetched back after a failure. What fits
   into the stages is collected after it; but the parts of a reduce_scatter are reduced where they belong. */
static inline int tb_changes_early(const tb_operation *operation)
{
    const tb_task *task = operation->task;
    int collected_late = operation->chunks <= TB_STAGE_CHUNKS && task->kind != TB_REDUCE_SCATTER;
    return task->target_bytes && !task->scratch && !collected_late;
}

#endif
