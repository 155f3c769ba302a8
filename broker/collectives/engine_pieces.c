/* Where the bytes of an operation lie, in the arrays and on the stages.

   all_reduce and reduce, of three positions: a chunk is shared out in parts at multiples of 64 bytes. Everybody stages what
   the others reduce; the place of the own part gets its result.

     array                 |   chunk 0 .................|   chunk 1 .................|
     stage of position 1   | part 0 | result | part 2   |

   reduce_scatter: the array has a part for each position, and chunk k is the k-th piece of every part.

     array                 | part 0: piece 0, piece 1, ..  | part 1: piece 0, piece 1, ..  | part 2 ...
     stage of position 1   | piece k of part 0 | -          | piece k of part 2 |

   all_to_all and scatter: the same, without a reduction; of a scatter only the root stages.
   all_gather, gather and broadcast: a chunk is a stretch of the array.

   An array may be several arrays that count as one when put end to end. Then the own part is staged too, so that a kernel
   finds it in one piece: a copy more of what a position reduces, and none of the whole. */
#define _GNU_SOURCE
#include "engine_operation.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "broker/copy_bytes.h"
#include "broker/transport/streaming_copy.h"

enum { PART_BYTES = 64 };

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

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

/* Of the kinds that share an array out: the room for one piece on a stage, and what chunk k has of every part. */
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
    unsigned char *own = tb_stage_of(engine->board, engine->positions, position, engine->stage_bytes);
    return own + chunk % operation->places * TB_CHUNK_BYTES;
}

static int shares_out(const tb_task *task)
{
    return task->kind == TB_REDUCE_SCATTER || task->kind == TB_SCATTER || task->kind == TB_ALL_TO_ALL;
}

/* Whether a position that gets something gets it from all. */
static int gathers(const tb_task *task)
{
    return task->kind == TB_ALL_GATHER || task->kind == TB_GATHER || task->kind == TB_ALL_TO_ALL;
}

size_t tb_chunks(const tb_operation *operation)
{
    const tb_task *task = operation->task;
    if (shares_out(task)) {
        size_t part = task->bytes / operation->engine->positions, room = piece_room(operation);
        return (part + room - 1) / room;
    }
    return (task->bytes + TB_CHUNK_BYTES - 1) / TB_CHUNK_BYTES;
}

/* The piece in which an offset lies. */
static const tb_piece *piece_at(const tb_piece *pieces, int count, size_t offset)
{
    int first = 0, last = count - 1;
    while (first < last) {
        int middle = (first + last + 1) / 2;
        if (pieces[middle].start <= offset)
            first = middle;
        else
            last = middle - 1;
    }
    return pieces + first;
}

/* Copies a stretch of an array that lies in pieces to `to`, or from `from` into it. */
static void move_pieces(const tb_piece *pieces, int count, stretch where, unsigned char *to, const unsigned char *from)
{
    const tb_piece *piece = piece_at(pieces, count, where.start);
    for (size_t done = 0; done < where.bytes; piece++) {
        size_t skip = where.start + done - piece->start, bytes = piece->bytes - skip;
        if (bytes > where.bytes - done)
            bytes = where.bytes - done;
        if (to)
            copy_bytes(to + done, piece->data + skip, bytes);
        else
            copy_bytes(piece->data + skip, from + done, bytes);
        done += bytes;
    }
}

static void read_source(const tb_task *task, stretch where, unsigned char *to)
{
    if (task->sources)
        move_pieces(task->sources, task->source_count, where, to, NULL);
    else
        copy_bytes(to, (const unsigned char *)task->source + where.start, where.bytes);
}

/* As read_source, to a stage. */
static void write_stage(const tb_operation *operation, stretch where, unsigned char *to)
{
    if (operation->stages_past_caches && !operation->task->sources)
        streaming_copy(to, (const unsigned char *)operation->task->source + where.start, where.bytes);
    else
        read_source(operation->task, where, to);
}

static void write_target(const tb_operation *operation, stretch where, const unsigned char *from)
{
    const tb_task *task = operation->task;
    if (task->targets)
        move_pieces(task->targets, task->target_count, where, NULL, from);
    else if (operation->result_past_caches)
        streaming_copy((unsigned char *)task->target + where.start, from, where.bytes);
    else
        copy_bytes((unsigned char *)task->target + where.start, from, where.bytes);
}

/* What a chunk changes of the target: so many stretches. */
static int changes(const tb_operation *operation, size_t chunk, stretch *found)
{
    const tb_task *task = operation->task;
    stretch one = shares_out(task) ? piece_of(operation, chunk) : chunk_of(task, chunk);
    int positions = operation->engine->positions, count = gathers(task) ? positions : 1;
    size_t step = task->kind == TB_ALL_TO_ALL ? task->bytes / positions : task->bytes;
    for (int each = 0; each < count; each++)
        found[each] = (stretch){each * step + one.start, one.bytes};
    return count;
}

/* A piece for each of the others, and for itself when a kernel or the target needs it in one. */
static void stage_pieces(tb_operation *operation, size_t chunk)
{
    const tb_task *task = operation->task;
    int own = operation->engine->position, positions = operation->engine->positions;
    unsigned char *place = place_of(operation, own, chunk);
    size_t part = task->bytes / positions, room = piece_room(operation);
    stretch piece = piece_of(operation, chunk);
    if (task->kind == TB_SCATTER && own != task->root)
        return;
    for (int position = 0; position < positions; position++)
        if (position != own || task->sources || task->targets)
            write_stage(operation, (stretch){position * part + piece.start, piece.bytes}, place + position * room);
}

/* Whether this position writes to its stage: what it sends to others, or its part of a result. */
static int writes_stage(const tb_operation *operation)
{
    const tb_task *task = operation->task;
    int own = operation->engine->position;
    if (task->kind == TB_SCATTER || task->kind == TB_BROADCAST)
        return own == task->root;
    return task->kind != TB_GATHER || own != task->root || task->sources || task->targets;
}

int tb_reserve_stage(tb_operation *operation, size_t chunk)
{
    tb_engine *engine = operation->engine;
    size_t start = chunk % operation->places * TB_CHUNK_BYTES, end = start + TB_CHUNK_BYTES;
    if (end <= engine->reserved_bytes || !writes_stage(operation))
        return 1;
    /* A system that does not know this (before Linux 5.14) makes the pages when they are written to. */
    if (madvise(place_of(operation, engine->position, chunk), TB_CHUNK_BYTES, MADV_POPULATE_WRITE) &&
        (errno == ENOMEM || errno == EFAULT || errno == EHWPOISON))
        return 0;
    engine->reserved_bytes = end;
    return 1;
}

void tb_stage(tb_operation *operation, size_t chunk)
{
    const tb_task *task = operation->task;
    int own = operation->engine->position, whole_needed = task->sources || task->targets;
    unsigned char *place = place_of(operation, own, chunk);
    if (shares_out(task)) {
        stage_pieces(operation, chunk);
        return;
    }
    if (!(task->source || task->sources) || (task->kind == TB_GATHER && own == task->root && !whole_needed))
        return;
    stretch whole = chunk_of(task, chunk);
    if (task->kernel && !task->sources) {
        stretch part = part_of(operation, whole.bytes, own);
        size_t end = part.start + part.bytes;
        write_stage(operation, (stretch){whole.start, part.start}, place);
        write_stage(operation, (stretch){whole.start + end, whole.bytes - end}, place + end);
    } else
        write_stage(operation, whole, place);
}

void tb_reduce_chunk(tb_operation *operation, size_t chunk)
{
    const tb_task *task = operation->task;
    const void *sources[TB_POSITIONS_MAX];
    const unsigned char *own_source;
    int own = operation->engine->position, positions = operation->engine->positions;
    size_t offset, bytes;
    unsigned char *out;
    if (task->kind == TB_REDUCE_SCATTER) {
        stretch piece = piece_of(operation, chunk);
        offset = own * piece_room(operation);
        bytes = piece.bytes;
        out = place_of(operation, own, chunk) + offset;
        own_source = (const unsigned char *)task->source + own * (task->bytes / positions) + piece.start;
    } else {
        stretch whole = chunk_of(task, chunk), part = part_of(operation, whole.bytes, own);
        offset = part.start;
        bytes = part.bytes;
        out = place_of(operation, own, chunk) + part.start;
        own_source = task->sources ? out : (const unsigned char *)task->source + whole.start + part.start;
    }
    for (int position = 0; position < positions; position++)
        sources[position] = position == own ? own_source : place_of(operation, position, chunk) + offset;
    if (bytes)
        task->kernel(out, sources, positions, bytes / task->item_bytes, task->divisor, operation->stages_past_caches, NULL);
}

/* The parts of a chunk that all positions have reduced. */
static void collect_parts(tb_operation *operation, size_t chunk)
{
    const tb_task *task = operation->task;
    stretch whole = chunk_of(task, chunk);
    for (int position = 0; position < operation->engine->positions; position++) {
        stretch part = part_of(operation, whole.bytes, position);
        write_target(operation, (stretch){whole.start + part.start, part.bytes},
                     place_of(operation, position, chunk) + part.start);
    }
}

/* What each position, or the root, has staged for this one. */
static void collect_pieces(tb_operation *operation, size_t chunk)
{
    const tb_task *task = operation->task;
    tb_engine *engine = operation->engine;
    stretch found[TB_POSITIONS_MAX];
    int own = engine->position, count = changes(operation, chunk, found), staged = task->sources || task->targets;
    size_t room = shares_out(task) ? own * piece_room(operation) : 0;
    size_t own_start = shares_out(task) ? own * (task->bytes / engine->positions) + piece_of(operation, chunk).start
                                        : chunk * TB_CHUNK_BYTES;
    for (int each = 0; each < count; each++) {
        int position = gathers(task) ? each : task->root;
        const unsigned char *from = place_of(operation, position, chunk) + room;
        if (position == own && !staged)
            from = (const unsigned char *)task->source + own_start;
        write_target(operation, found[each], from);
    }
}

void tb_collect(tb_operation *operation, size_t chunk)
{
    const tb_task *task = operation->task;
    if (!task->target_bytes)
        return;
    if (task->kind == TB_REDUCE_SCATTER) {
        stretch piece = piece_of(operation, chunk);
        size_t own = operation->engine->position;
        write_target(operation, piece, place_of(operation, own, chunk) + own * piece_room(operation));
    } else if (task->kernel)
        collect_parts(operation, chunk);
    else
        collect_pieces(operation, chunk);
}

void tb_remember(tb_operation *operation, size_t chunk)
{
    const tb_task *task = operation->task;
    tb_undo *undo = &operation->engine->undo;
    stretch found[TB_POSITIONS_MAX];
    int count = changes(operation, chunk, found);
    for (int each = 0; each < count; each++)
        if (task->targets)
            move_pieces(task->targets, task->target_count, found[each], undo->memory + found[each].start, NULL);
        else
            tb_undo_keep(undo, task->target, found[each].start, found[each].bytes);
}

void tb_restore(tb_operation *operation)
{
    stretch found[TB_POSITIONS_MAX];
    for (size_t chunk = 0; chunk < operation->touched; chunk++)
        for (int each = changes(operation, chunk, found) - 1; each >= 0; each--)
            write_target(operation, found[each], operation->engine->undo.memory + found[each].start);
}

void tb_write_row(tb_operation *operation)
{
    const tb_task *task = operation->task;
    if ((task->source || task->sources) && task->bytes)
        read_source(task, (stretch){0, task->bytes}, operation->own->rows[operation->sequence % TB_ROWS].payload);
}

void tb_finish_rows(tb_operation *operation)
{
    const tb_task *task = operation->task;
    tb_engine *engine = operation->engine;
    const void *payloads[TB_POSITIONS_MAX];
    unsigned char total[TB_INLINE_BYTES];
    size_t bytes = task->bytes, offset = 0;
    if (!task->target_bytes)
        return;
    if (shares_out(task)) {
        bytes /= engine->positions;
        offset = engine->position * bytes;
    }
    for (int position = 0; position < engine->positions; position++)
        payloads[position] =
            tb_slot_of(engine->board, position)->rows[operation->sequence % TB_ROWS].payload + offset;
    if (task->kernel) {
        task->kernel(task->targets ? total : task->target, payloads, engine->positions, bytes / task->item_bytes,
                     task->divisor, 0, NULL);
        if (task->targets)
            write_target(operation, (stretch){0, bytes}, total);
    } else if (task->kind == TB_BROADCAST || task->kind == TB_SCATTER)
        write_target(operation, (stretch){0, bytes}, payloads[task->root]);
    else
        for (int position = 0; position < engine->positions; position++)
            write_target(operation, (stretch){position * bytes, bytes}, payloads[position]);
}
