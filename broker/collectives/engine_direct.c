/* An all_reduce of arrays that lie in memory which all positions map (clients/collectives/windows.py). Nothing is staged: each piece is
   reduced straight from where the arrays lie, and written to where it belongs in everybody's result.

     source of position 0  | part 0 | part 1 | part 2 |  \
               position 1  | part 0 | part 1 | part 2 |   >  position 1 reduces pieces of part 1 of all,
               position 2  | part 0 | part 1 | part 2 |  /
     targets of all        |        | part 1 |        |      and writes each piece to all of them

   Each array is read once and written once, which is the least that is possible (bench/limit.py). There is no way back
   and none is needed: sources are not written to, and what a target holds after a failure is nobody's. A position that
   was stopped half-way may go on to write when the others have given it up. So whoever sees a failure takes its target
   out of the common memory before its program can use it again, and no later operation begins while a position is in
   this one.

   Who reduces a piece claims it first (`claimed` on the board): of the own part, and when that is gone, of the part that has the
   most left. So those that have a processor do the work of those that have none, and nobody waits for a position that has not
   claimed anything: once all is claimed, it cannot. A piece comes out the same whoever reduces it.

   Where positions share processors, the last one to return counts. One that returns computes on, and keeps those beside it for a
   whole turn of the kernel's from seeing that they are done, too. So there a long operation runs in moments: positions give way to
   one another often, so that none has had more than its share, and at the end sleep for moments that nobody has to cut short.
   Who wakes up by itself, has had no more than its share and wants only a moment goes before one that computes. */
#define _GNU_SOURCE
#include "engine_operation.h"

#include <sched.h>

#include "broker/transport/streaming_copy.h"

enum {
    PIECE_BYTES = 128 << 10, /* Takes long beside a claim, and is little to wait for at the end. */
    RESULT_BYTES = 32 << 10, /* Stays in the processor's nearest cache, where it is written everywhere from there. */
    PART_BYTES = 64,
    TOGETHER_MAX = 8,         /* Places that are written at once; of more, pages and lines would change too often. */
    SHARED_BYTES_MIN = 12 << 20, /* Of all arrays: in less time the kernel takes no processor away. */
    TURN_NS = 150000,
    NAPS_MAX = 50,
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

static size_t pieces_of(const tb_operation *operation, int part)
{
    size_t bytes = part_start(operation, part + 1) - part_start(operation, part);
    return (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
}

static _Atomic uint64_t *claimed_of(const tb_operation *operation, int part)
{
    return &tb_slot_of(operation->engine->board, part)->claimed;
}

/* How many pieces of a part nobody has claimed, and the word that says so. */
static size_t unclaimed(const tb_operation *operation, int part, uint64_t *word)
{
    *word = atomic_load_explicit(claimed_of(operation, part), memory_order_acquire);
    size_t pieces = pieces_of(operation, part);
    uint64_t none = tb_mark(operation, 0), all = tb_mark(operation, pieces);
    return *word < none ? pieces : *word < all ? all - *word : 0;
}

/* Of which part to take a piece. */
static int richest(const tb_operation *operation, uint64_t *word, size_t *left)
{
    int found = operation->engine->position;
    *left = unclaimed(operation, found, word);
    for (int part = 0, own = *left != 0; !own && part < operation->engine->positions; part++) {
        uint64_t there;
        size_t pieces = unclaimed(operation, part, &there);
        if (pieces > *left) {
            *left = pieces;
            *word = there;
            found = part;
        }
    }
    return found;
}

/* Claims a piece; returns its length, 0 when there is none any more. */
static size_t claim(const tb_operation *operation, size_t *start)
{
    uint64_t word;
    size_t left;
    for (;;) {
        int part = richest(operation, &word, &left);
        if (!left)
            return 0;
        size_t piece = pieces_of(operation, part) - left, end = part_start(operation, part + 1);
        if (!atomic_compare_exchange_strong(claimed_of(operation, part), &word, tb_mark(operation, piece + 1)))
            continue;
        *start = part_start(operation, part) + piece * PIECE_BYTES;
        return end - *start < PIECE_BYTES ? end - *start : PIECE_BYTES;
    }
}

/* Past the caches, whatever the length: lines of a target that its rank has read are in the other processor's cache, and to take
   them from there first costs more than to read them from memory later. Straight from the registers: stores that go
   past the caches wait for all others that lie between them. */
static void reduce_piece(const tb_operation *operation, size_t start, size_t bytes)
{
    const tb_task *task = operation->task;
    int positions = operation->engine->positions;
    size_t step = positions <= TOGETHER_MAX ? bytes : RESULT_BYTES;
    _Alignas(64) unsigned char result[RESULT_BYTES];
    const void *sources[TB_POSITIONS_MAX] = {0};
    void *targets[TB_POSITIONS_MAX] = {0};
    for (size_t end = start + bytes; start < end; start += step) {
        if (step > end - start)
            step = end - start;
        for (int position = 0; position < positions; position++) {
            sources[position] = task->shared_source.bases[position] + task->shared_source.offset + start;
            targets[position] = task->shared_target.bases[position] + task->shared_target.offset + start;
        }
        if (positions <= TOGETHER_MAX) {
            task->kernel(targets[0], sources, positions, step / task->item_bytes, task->divisor, positions, targets + 1);
            continue;
        }
        task->kernel(result, sources, positions, step / task->item_bytes, task->divisor, 0, NULL);
        for (int position = 0; position < positions; position++)
            streaming_copy(targets[position], result, step);
    }
}

static int reduce_pieces(tb_operation *operation)
{
    uint64_t turn_ns = tb_now_ns();
    size_t start, bytes;
    while ((bytes = claim(operation, &start)) != 0) {
        reduce_piece(operation, start, bytes);
        int ended = tb_glance(operation, TB_ARRIVED, operation->sequence);
        if (ended)
            return ended;
        if (operation->naps && tb_now_ns() - turn_ns > TURN_NS) {
            sched_yield();
            turn_ns = tb_now_ns();
        }
    }
    return 0;
}

/* Waits for those that have begun, and so may have claimed something. */
static int wait_for_claimed(tb_operation *operation)
{
    uint64_t done = tb_mark(operation, operation->chunks);
    int ended = 0;
    for (int position = 0; position < operation->engine->positions && !ended; position++) {
        tb_slot *slot = tb_slot_of(operation->engine->board, position);
        if (atomic_load_explicit(tb_counter_of(slot, TB_STAGED), memory_order_acquire) >= done)
            ended = tb_wait_for(operation, position, TB_REDUCED, done);
    }
    return ended;
}

/* Whether no other position can run on this one's processor. */
static int is_alone(tb_engine *engine)
{
    uint32_t own = atomic_load(&tb_slot_of(engine->board, engine->position)->bound);
    for (int position = 0; own && position < engine->positions; position++) {
        uint32_t bound = atomic_load(&tb_slot_of(engine->board, position)->bound);
        if (position != engine->position && (!bound || bound == own))
            return 0;
    }
    return own != 0;
}

int tb_move_direct(tb_operation *operation)
{
    tb_engine *engine = operation->engine;
    int is_long = operation->task->bytes >= (size_t)SHARED_BYTES_MIN / engine->positions;
    int shared = engine->crowded && is_long && !is_alone(engine);
    uint64_t slice_ns = shared ? tb_run_in_moments() : 0, done = tb_mark(operation, operation->chunks);
    operation->naps = shared ? NAPS_MAX : 0;
    /* Before the first claim: whoever sees the claim sees that this position has begun. */
    tb_publish(operation->own, TB_STAGED, done);
    int ended = reduce_pieces(operation);
    if (!ended) {
        tb_publish(operation->own, TB_REDUCED, done);
        ended = wait_for_claimed(operation);
    }
    if (!ended)
        ended = tb_commit(operation);
    tb_run_as_before(slice_ns);
    return ended;
}
