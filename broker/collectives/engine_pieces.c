/* Where the bytes of an operation lie, in the arrays and on the stages.

   all_reduce, of three positions: a chunk is shared out in parts at multiples of 64 bytes. Everybody stages what the
   others reduce; the place of the own part gets its result.

     array                 |   chunk 0 .................|   chunk 1 .................|
     stage of position 1   | part 0 | result | part 2   |

   reduce_scatter: the array has a part for each position, and chunk k is the k-th piece of every part.

     array                 | part 0: piece 0, piece 1, ..  | part 1: piece 0, piece 1, ..  | part 2 ...
     stage of position 1   | piece k of part 0 | -          | piece k of part 2 |

   all_gather and broadcast: a chunk is a stretch of the array. */
#define _GNU_SOURCE
#include "engine_operation.h"

#include <string.h>

enum { PART_BYTES = 64 };

typedef struct {
    size_t start, bytes;
} stretch;

/* A chunk of an array that is cut into stretches of TB_CHUNK_BYTES. */
static stretch chunk_of(const tb_task *task, size_t chunk)
{
    size_t start = chunk * TB_CHUNK_BYTES, left = task->bytes - start;
    return (stretch){start, left < TB_CHUNK_BYTES ? left : TB_CHUNK_BYTES};
}

/* What a position reduces of a chunk of an all_reduce. */
static stretch part_of(const tb_operation *operation, size_t chunk_bytes, int position)
{
    size_t positions = operation->engine->positions;
    size_t step = (chunk_bytes + positions * PART_BYTES - 1) / (positions * PART_BYTES) * PART_BYTES;
    size_t start = position * step < chunk_bytes ? position * step : chunk_bytes;
    size_t stop = start + step < chunk_bytes ? start + step : chunk_bytes;
    return (stretch){start, stop - start};
}

/* Of a reduce_scatter: the room for one piece on a stage, and what chunk k has of every part. */
static size_t piece_room(const tb_operation *operation)
{
    return TB_CHUNK_BYTES / operation->engine->positions / PART_BYTES * PART_BYTES;
}

static stretch piece_of(const tb_operation *operation, size_t chunk)
{
    size_t room = piece_room(operation), part = operation->task->bytes / operation->engine->positions;
    size_t start = chunk * room, left = part - start;
    return (stretch){start, left < room ? left : room};
}

static unsigned char *place_of(const tb_operation *operation, int position, size_t chunk)
{
    tb_engine *engine = operation->engine;
    unsigned char *own = tb_stage_of(engine->board, engine->positions, position);
    return own + chunk % operation->places * TB_CHUNK_BYTES;
}

size_t tb_chunks(const tb_operation *operation)
{
    const tb_task *task = operation->task;
    if (task->kind == TB_REDUCE_SCATTER) {
        size_t part = task->bytes / operation->engine->positions, room = piece_room(operation);
        return (part + room - 1) / room;
    }
    return (task->bytes + TB_CHUNK_BYTES - 1) / TB_CHUNK_BYTES;
}

void tb_stage(tb_operation *operation, size_t chunk)
{
    const tb_task *task = operation->task;
    const unsigned char *source = task->source;
    unsigned char *place = place_of(operation, operation->engine->position, chunk);
    int own = operation->engine->position, positions = operation->engine->positions;
    if (task->kind == TB_REDUCE_SCATTER) {
        size_t part = task->bytes / positions, room = piece_room(operation);
        stretch piece = piece_of(operation, chunk);
        for (int position = 0; position < positions; position++)
            if (position != own)
                memcpy(place + position * room, source + position * part + piece.start, piece.bytes);
    } else if (task->kind == TB_ALL_REDUCE) {
        stretch whole = chunk_of(task, chunk), part = part_of(operation, whole.bytes, own);
        size_t end = part.start + part.bytes;
        memcpy(place, source + whole.start, part.start);
        memcpy(place + end, source + whole.start + end, whole.bytes - end);
    } else if (source) {
        stretch whole = chunk_of(task, chunk);
        memcpy(place, source + whole.start, whole.bytes);
    }
}

void tb_reduce_chunk(tb_operation *operation, size_t chunk)
{
    const tb_task *task = operation->task;
    const unsigned char *source = task->source;
    const void *sources[TB_POSITIONS_MAX];
    int own = operation->engine->position, positions = operation->engine->positions;
    size_t offset, bytes;
    unsigned char *out;
    if (task->kind == TB_REDUCE_SCATTER) {
        stretch piece = piece_of(operation, chunk);
        offset = own * piece_room(operation);
        bytes = piece.bytes;
        out = (unsigned char *)task->target + piece.start;
        sources[own] = source + own * (task->bytes / positions) + piece.start;
    } else {
        stretch whole = chunk_of(task, chunk), part = part_of(operation, whole.bytes, own);
        offset = part.start;
        bytes = part.bytes;
        out = place_of(operation, own, chunk) + part.start;
        sources[own] = source + whole.start + part.start;
    }
    for (int position = 0; position < positions; position++)
        if (position != own)
            sources[position] = place_of(operation, position, chunk) + offset;
    if (bytes)
        task->kernel(out, sources, positions, bytes / task->item_bytes, task->divisor, 0);
}

void tb_collect(tb_operation *operation, size_t chunk)
{
    const tb_task *task = operation->task;
    int own = operation->engine->position, positions = operation->engine->positions;
    if (task->kind == TB_REDUCE_SCATTER || !task->target)
        return;
    stretch whole = chunk_of(task, chunk);
    unsigned char *target = (unsigned char *)task->target + whole.start;
    if (task->kind == TB_BROADCAST)
        memcpy(target, place_of(operation, task->root, chunk), whole.bytes);
    else if (task->kind == TB_ALL_GATHER)
        for (int position = 0; position < positions; position++) {
            const unsigned char *from = position == own ? (const unsigned char *)task->source + whole.start
                                                        : place_of(operation, position, chunk);
            memcpy(target + position * task->bytes, from, whole.bytes);
        }
    else
        for (int position = 0; position < positions; position++) {
            stretch part = part_of(operation, whole.bytes, position);
            memcpy(target + part.start, place_of(operation, position, chunk) + part.start, part.bytes);
        }
}

void tb_remember(tb_operation *operation, size_t chunk)
{
    stretch whole = chunk_of(operation->task, chunk);
    tb_undo_keep(&operation->engine->undo, operation->task->target, whole.start, whole.bytes);
}

void tb_restore(tb_operation *operation)
{
    if (operation->touched) {
        stretch last = chunk_of(operation->task, operation->touched - 1);
        tb_undo_restore(&operation->engine->undo, operation->task->target, 0, last.start + last.bytes);
    }
}

void tb_write_row(tb_operation *operation)
{
    const tb_task *task = operation->task;
    if (task->source && task->bytes)
        memcpy(operation->own->rows[operation->sequence % TB_ROWS].payload, task->source, task->bytes);
}

void tb_finish_rows(tb_operation *operation)
{
    const tb_task *task = operation->task;
    tb_engine *engine = operation->engine;
    const void *payloads[TB_POSITIONS_MAX];
    unsigned char *target = task->target;
    size_t bytes = task->bytes, offset = 0;
    if (!target || !bytes)
        return;
    if (task->kind == TB_REDUCE_SCATTER) {
        bytes /= engine->positions;
        offset = engine->position * bytes;
    }
    for (int position = 0; position < engine->positions; position++)
        payloads[position] =
            tb_slot_of(engine->board, position)->rows[operation->sequence % TB_ROWS].payload + offset;
    if (task->kind == TB_BROADCAST)
        memcpy(target, payloads[task->root], bytes);
    else if (task->kind == TB_ALL_GATHER)
        for (int position = 0; position < engine->positions; position++)
            memcpy(target + position * bytes, payloads[position], bytes);
    else
        task->kernel(target, payloads, engine->positions, bytes / task->item_bytes, task->divisor, 0);
}
