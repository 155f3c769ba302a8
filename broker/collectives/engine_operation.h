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
} tb_operation;

/* The number of chunks that an operation moves in, and where its data lie in them. */
size_t tb_chunks(const tb_operation *operation);

/* Copies what the others need of a chunk of the own array into the own stage. */
void tb_stage(tb_operation *operation, size_t chunk);

/* Reduces the own part of a chunk from all stages. */
void tb_reduce_chunk(tb_operation *operation, size_t chunk);

/* Copies a chunk of the result from all stages into the target. */
void tb_collect(tb_operation *operation, size_t chunk);

/* Copies a chunk of the target to where it can be fetched back from, and all that may have changed back again. */
void tb_remember(tb_operation *operation, size_t chunk);
void tb_restore(tb_operation *operation);

/* The whole of an operation whose arrays lie in the rows. */
void tb_write_row(tb_operation *operation);
void tb_finish_rows(tb_operation *operation);

/* Carries one operation out (engine_operation.c); returns its status. */
int tb_carry_out(void *engine, tb_task *task);

#endif
