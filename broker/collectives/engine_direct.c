/* An all_reduce of arrays that lie in memory which all positions map (clients/collectives/windows.py). Nothing is staged: each position
   reduces its part straight from where the arrays lie, and writes it to where it belongs in everybody's result.

     source of position 0  | part 0 | part 1 | part 2 |  \
               position 1  | part 0 | part 1 | part 2 |   >  position 1 reduces part 1 of all, piece by piece,
               position 2  | part 0 | part 1 | part 2 |  /
     targets of all        |        | part 1 |        |      and writes each piece to all of them

   Each array is read once and written once, which is the least that is possible (bench/limit.py). There is no way back
   and none is needed: sources are not written to, and what a target holds after a failure is nobody's. A position that
   was stopped half-way may go on to write when the others have given it up. So whoever sees a failure takes its target
   out of the common memory before its program can use it again, and no later operation begins while a position is in
   this one. */
#define _GNU_SOURCE
#include "engine_operation.h"

#include "broker/transport/streaming_copy.h"

enum {
    PIECE_BYTES = 32 << 10, /* Stays in the processor's nearest cache, where it is written everywhere from there. */
    PART_BYTES = 64,
    TOGETHER_MAX = 8, /* Places that are written at once; of more, pages and lines would change too often. */
};

int tb_is_direct(const tb_operation *operation)
{
    const tb_task *task = operation->task;
    for (int position = 0; position < operation->engine->positions; position++) {
        const uint64_t *places = tb_slot_of(operation->engine->board, position)->places[operation->sequence % TB_ROWS];
        if (places[0] != task->shared_source.place || places[1] != task->shared_target.place)
            return 0;
    }
    return task->shared_source.place != 0;
}

/* Where the part of a position begins. */
static size_t part_start(const tb_operation *operation, size_t position)
{
    size_t positions = operation->engine->positions, bytes = operation->task->bytes;
    size_t start = (bytes + positions * PART_BYTES - 1) / (positions * PART_BYTES) * PART_BYTES * position;
    return start < bytes ? start : bytes;
}

int tb_reduce_direct(tb_operation *operation, size_t piece)
{
    const tb_task *task = operation->task;
    int own = operation->engine->position, positions = operation->engine->positions;
    size_t start = part_start(operation, own) + piece * PIECE_BYTES, stop = part_start(operation, own + 1);
    if (start >= stop)
        return 0;
    size_t bytes = stop - start < PIECE_BYTES ? stop - start : PIECE_BYTES;
    _Alignas(64) unsigned char result[PIECE_BYTES];
    const void *sources[TB_POSITIONS_MAX] = {0};
    void *targets[TB_POSITIONS_MAX] = {0};
    for (int position = 0; position < positions; position++) {
        sources[position] = task->shared_source.bases[position] + task->shared_source.offset + start;
        targets[position] = task->shared_target.bases[position] + task->shared_target.offset + start;
    }
    size_t elements = bytes / task->item_bytes;
    /* Past the caches, whatever the length: lines of a target that its rank has read are in the other processor's cache, and to take
       them from there first costs more than to read them from memory later. Straight from the registers: stores that go
       past the caches wait for all others that lie between them. */
    if (positions <= TOGETHER_MAX) {
        task->kernel(targets[0], sources, positions, elements, task->divisor, positions, targets + 1);
        return 1;
    }
    task->kernel(result, sources, positions, elements, task->divisor, 0, NULL);
    for (int position = 0; position < positions; position++)
        streaming_copy(targets[position], result, bytes);
    return 1;
}
