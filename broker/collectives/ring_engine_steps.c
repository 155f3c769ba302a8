/* Which bytes go where: an operation is a list of steps, in each of which a position sends a stretch of the array to one
   other and receives one from another. A stretch moves in pieces; piece k goes on lane k % lanes.

   ring, of 4 positions, seen from position 1: the array has 4 parts, and what is received is added to the own part

     step           0    1    2    3    4    5
     send to 2      0    3    2    1    0    3        a part is sent on piece by piece, as it comes
     from 0         3    2    1    0    3    2
                    ---- added ---  -- copied --

   A part goes round once, from the position after the one with its number to that one, and is added up in this order; the sum
   goes round once more. reduce_scatter is the first half, all_gather the second. broadcast hands the array on from the root.

   halving, of a power of two: in each step two positions exchange halves of what both still have to add up, each adds its own,
   and the half of that remains; then the same way back, with sums. Of another number, the first positions are pairs: the even
   one gives its array to the odd one at the beginning, and gets the sum at the end. Steps are taken in order: what comes
   too early waits in memory of its own.

   float16 and bfloat16 are added in float32 and rounded, to nearest, ties to even, at each step at which they are added: n - 1
   times on a ring of n positions, where the engine of a board rounds once. A mean is divided at the last of them, before
   that one is rounded. So a sum on its way may be too large for a float16, and is infinite then. */
#define _GNU_SOURCE
#include "ring_engine_operation.h"

#include <string.h>

enum {
    PART_BYTES = 64,
    /* As measured (python -m bench.engine --ring): below it, fewer steps count for more than steps that overlap. */
    HALVING_BYTES = 128 << 10,
};

typedef struct {
    size_t start, bytes;
} stretch;

static size_t least(size_t first, size_t second) { return first < second ? first : second; }

static size_t pieces(const tb_exchange *x, size_t bytes) { return (bytes + x->piece_bytes - 1) / x->piece_bytes; }

static size_t piece_bytes(const tb_exchange *x, size_t bytes, size_t piece)
{
    return least(bytes - piece * x->piece_bytes, x->piece_bytes);
}

/* The schedules. */

static stretch part_of(const tb_exchange *x, int part)
{
    size_t positions = x->ring->positions, bytes = x->task->bytes;
    part = (part % (int)positions + positions) % positions;
    if (x->task->kind == TB_ALL_GATHER)
        return (stretch){part * bytes, bytes};
    if (x->task->kind == TB_REDUCE_SCATTER)
        return (stretch){part * (bytes / positions), bytes / positions};
    size_t step = (bytes + positions * PART_BYTES - 1) / (positions * PART_BYTES) * PART_BYTES;
    size_t start = least(part * step, bytes);
    return (stretch){start, least(step, bytes - start)};
}

static tb_step *add_step(tb_exchange *x, int to, stretch sent, int from, stretch received)
{
    tb_step *step = &x->steps[x->count++];
    *step = (tb_step){.to = to, .from = from, .needs = x->count - 2};
    if (to >= 0)
        step->send_at = sent.start, step->send_bytes = sent.bytes;
    if (from >= 0)
        step->receive_at = received.start, step->receive_bytes = received.bytes;
    return step;
}

static void plan_ring(tb_exchange *x)
{
    int positions = x->ring->positions, position = x->ring->position, kind = x->task->kind;
    int right = (position + 1) % positions, left = (position + positions - 1) % positions;
    for (int turn = 0; turn < positions - 1 && kind != TB_ALL_GATHER; turn++) {
        tb_step *step =
            add_step(x, right, part_of(x, position - 1 - turn), left, part_of(x, position - 2 - turn));
        step->reduces = 1;
        step->closes = turn == positions - 2;
    }
    for (int turn = 0; turn < positions - 1 && kind != TB_REDUCE_SCATTER; turn++)
        add_step(x, right, part_of(x, position - turn), left, part_of(x, position - 1 - turn));
    /* The first step sends of the own array, which is one part here. */
    if (kind == TB_ALL_GATHER)
        x->steps[0].send_at = 0;
}

static void plan_broadcast(tb_exchange *x)
{
    int positions = x->ring->positions, place = (x->ring->position - x->task->root + positions) % positions;
    int right = place < positions - 1 ? (x->ring->position + 1) % positions : -1;
    int left = place ? (x->ring->position + positions - 1) % positions : -1;
    stretch whole = {0, x->task->bytes};
    add_step(x, right, whole, left, whole)->needs = place ? 0 : -1;
}

static void add_reduction(tb_exchange *x, int to, stretch sent, int from, stretch received)
{
    tb_step *step = add_step(x, to, sent, from, received);
    step->reduces = 1;
    step->spare_at = x->spare_bytes;
    x->spare_bytes += step->receive_bytes;
}

static int logarithm(int many) { return many > 1 ? 1 + logarithm(many / 2) : 0; }

/* The position of a number among those that halve. */
static int halving_position(int number, int pairs) { return number < pairs ? 2 * number + 1 : number + pairs; }

static void plan_halving(tb_exchange *x)
{
    int positions = x->ring->positions, position = x->ring->position, many = 1, depth = 0;
    while (2 * many <= positions)
        many *= 2;
    int pairs = positions - many, number = position < 2 * pairs ? position / 2 : position - pairs;
    stretch whole = {0, x->task->bytes}, kept[8], given[8];
    int paired = position < 2 * pairs, gives = paired && position % 2 == 0;
    x->in_order = 1;
    /* Steps have the same numbers everywhere. */
    if (pairs)
        add_reduction(x, gives ? position + 1 : -1, whole, paired && !gives ? position - 1 : -1, whole);
    if (gives)
        while (x->count < 1 + 2 * logarithm(many))
            add_step(x, -1, whole, -1, whole);
    for (int distance = many / 2; distance && !gives; distance /= 2, depth++) {
        size_t half = least((whole.bytes / 2 + PART_BYTES - 1) / PART_BYTES * PART_BYTES, whole.bytes);
        stretch lower = {whole.start, half}, upper = {whole.start + half, whole.bytes - half};
        kept[depth] = number & distance ? upper : lower;
        given[depth] = number & distance ? lower : upper;
        int partner = halving_position(number ^ distance, pairs);
        add_reduction(x, partner, given[depth], partner, kept[depth]);
        whole = kept[depth];
    }
    x->steps[x->count - 1].closes = !gives;
    for (int distance = 1; depth--; distance *= 2) {
        int partner = halving_position(number ^ distance, pairs);
        add_step(x, partner, kept[depth], partner, given[depth]);
    }
    whole = (stretch){0, x->task->bytes};
    if (pairs)
        add_step(x, paired && !gives ? position - 1 : -1, whole, gives ? position + 1 : -1, whole);
}

/* Whether the target changes before the verdict, and has to be as it was after a failure. */
static int remembers(const tb_task *task)
{
    return task->target && !task->scratch && task->kind != TB_REDUCE_SCATTER;
}

/* Which steps are the first to change what they change; no stretch is in part within an earlier one. */
static void mark_kept(tb_exchange *x)
{
    for (tb_step *step = x->steps; step < x->steps + x->count; step++) {
        step->keeps = remembers(x->task) && step->receive_bytes;
        for (tb_step *before = x->steps; before < step; before++)
            if (before->receive_at <= step->receive_at &&
                step->receive_at + step->receive_bytes <= before->receive_at + before->receive_bytes)
                step->keeps = 0;
    }
}

static void next_in(tb_exchange *x, tb_lane *lane)
{
    while (lane->step_in < x->count &&
           (x->steps[lane->step_in].from != lane->peer ||
            lane->piece_in >= pieces(x, x->steps[lane->step_in].receive_bytes))) {
        lane->step_in++;
        lane->piece_in = lane->number;
    }
}

static void next_out(tb_exchange *x, tb_lane *lane)
{
    while (lane->step_out < x->count &&
           (x->steps[lane->step_out].to != lane->peer ||
            lane->piece_out >= pieces(x, x->steps[lane->step_out].send_bytes))) {
        lane->step_out++;
        lane->piece_out = lane->number;
    }
}

/* Remembers the first pieces that a step changes, if it is the first to change them. */
static void keep(tb_exchange *x, tb_step *step, size_t count)
{
    for (; step->keeps && step->kept < count; step->kept++) {
        size_t at = step->kept * x->piece_bytes;
        tb_undo_keep(&x->ring->undo, x->base, step->receive_at + at, piece_bytes(x, step->receive_bytes, step->kept));
    }
}

static void apply_in_order(tb_exchange *x);

static void choose_memory(tb_exchange *x)
{
    const tb_task *task = x->task;
    x->own = task->source ? task->source : task->target;
    x->base = task->target ? task->target : (void *)task->source;
    if (task->kind == TB_REDUCE_SCATTER)
        x->base = x->ring->undo.memory;
    /* Steps in order add to what is there more than once. They receive into all of the array. */
    if (x->in_order && x->own != x->base) {
        for (tb_step *step = x->steps; step < x->steps + x->count; step++)
            keep(x, step, pieces(x, step->receive_bytes));
        memcpy(x->base, x->own, task->bytes);
        x->own = x->base;
    }
}

int tb_plan_steps(tb_exchange *x)
{
    const tb_task *task = x->task;
    tb_ring *ring = x->ring;
    x->small = task->bytes <= TB_INLINE_BYTES || ring->positions == 1;
    x->count = x->in_order = x->applied = 0;
    x->spare_bytes = 0;
    x->piece_bytes = TB_PIECE_BYTES;
    int halves = task->schedule == TB_HALVING ||
                 (task->schedule == TB_AUTO && task->bytes <= HALVING_BYTES && ring->positions > 2);
    if (x->small || task->impossible)
        ;
    else if (task->kind == TB_BROADCAST)
        plan_broadcast(x);
    else if (task->kind == TB_ALL_REDUCE && halves)
        plan_halving(x);
    else
        plan_ring(x);
    mark_kept(x);
    for (tb_lane *lane = ring->lanes; lane < ring->lanes + ring->lane_count; lane++) {
        lane->step_in = lane->step_out = 0;
        lane->piece_in = lane->piece_out = lane->number;
        next_in(x, lane);
        next_out(x, lane);
    }
    size_t beside = task->kind == TB_REDUCE_SCATTER ? task->bytes : remembers(task) ? task->target_bytes : 0;
    if ((x->count && beside && !tb_undo_reserve(&ring->undo, beside)) ||
        (x->spare_bytes && !tb_undo_reserve(&ring->spare, x->spare_bytes)))
        return 0;
    if (x->count)
        choose_memory(x);
    apply_in_order(x);
    return 1;
}

/* Pieces. */

static int has_come(const tb_exchange *x, int step, size_t piece)
{
    int from = x->steps[step].from;
    if (from < 0)
        return 1;
    const tb_peer *peer = &x->ring->peers[from];
    const tb_lane *lane = &peer->lanes[piece % peer->count];
    return lane->step_in > step || (lane->step_in == step && lane->piece_in > piece);
}

static int have_all_come(const tb_exchange *x, int step)
{
    int from = x->steps[step].from;
    if (from >= 0)
        for (int number = 0; number < x->ring->peers[from].count; number++)
            if (x->ring->peers[from].lanes[number].step_in <= step)
                return 0;
    return 1;
}

/* Adds what has come to what is there, in the order of the positions. */
static void reduce(const tb_exchange *x, const tb_step *step, const unsigned char *received, size_t at, size_t bytes)
{
    const tb_task *task = x->task;
    const void *sources[2] = {received, x->own + at};
    unsigned char *out = x->base + at;
    if (x->in_order && step->from > x->ring->position)
        sources[0] = x->own + at, sources[1] = received;
    if (step->closes && task->kind == TB_REDUCE_SCATTER && task->scratch)
        out = (unsigned char *)task->target + (at - step->receive_at);
    task->kernel(out, sources, 2, bytes / task->item_bytes, step->closes ? task->divisor : 1, 0);
}

static void apply_in_order(tb_exchange *x)
{
    while (x->in_order && x->applied < x->count && have_all_come(x, x->applied)) {
        const tb_step *step = &x->steps[x->applied++];
        if (step->reduces && step->receive_bytes)
            reduce(x, step, x->ring->spare.memory + step->spare_at, step->receive_at, step->receive_bytes);
    }
}

int tb_piece_to_send(tb_exchange *x, tb_lane *lane)
{
    if (x->verdict || x->gathering || lane->step_out >= x->count)
        return 0;
    const tb_step *step = &x->steps[lane->step_out];
    size_t piece = lane->piece_out;
    if (x->in_order ? x->applied < lane->step_out : step->needs >= 0 && !has_come(x, step->needs, piece))
        return 0;
    lane->out = (tb_head){
        TB_LINK_MAGIC, TB_PIECE, 0, piece_bytes(x, step->send_bytes, piece), lane->step_out, x->sequence, piece, 0,
    };
    lane->out_body = (lane->step_out ? x->base : x->own) + step->send_at + piece * x->piece_bytes;
    lane->out_sent = 0;
    lane->out_busy = 1;
    lane->piece_out += x->ring->peers[lane->peer].count;
    next_out(x, lane);
    return 1;
}

int tb_expect_piece(tb_exchange *x, tb_lane *lane)
{
    const tb_head *head = &lane->head;
    if (lane->step_in >= x->count)
        return 0;
    tb_step *step = &x->steps[lane->step_in];
    if (head->step != (uint32_t)lane->step_in || head->first != lane->piece_in ||
        head->bytes != piece_bytes(x, step->receive_bytes, lane->piece_in))
        return 0;
    keep(x, step, lane->piece_in + 1);
    return 1;
}

unsigned char *tb_piece_place(tb_exchange *x, tb_lane *lane)
{
    const tb_step *step = &x->steps[lane->step_in];
    size_t at = lane->piece_in * x->piece_bytes + lane->body_bytes;
    if (!step->reduces)
        return x->base + step->receive_at + at;
    return x->in_order ? x->ring->spare.memory + step->spare_at + at : lane->stage + lane->body_bytes;
}

void tb_piece_grew(tb_exchange *x, tb_lane *lane)
{
    const tb_step *step = &x->steps[lane->step_in];
    size_t bytes = lane->body_bytes - lane->reduced, at = step->receive_at + lane->piece_in * x->piece_bytes;
    if (!step->reduces || x->in_order)
        return;
    bytes -= bytes % x->task->item_bytes;
    if (bytes)
        reduce(x, step, lane->stage + lane->reduced, at + lane->reduced, bytes);
    lane->reduced += bytes;
}

void tb_piece_came(tb_exchange *x, tb_lane *lane)
{
    lane->piece_in += x->ring->peers[lane->peer].count;
    next_in(x, lane);
    apply_in_order(x);
    x->stirred = 1;
}

int tb_all_here(tb_exchange *x)
{
    for (const tb_lane *lane = x->ring->lanes; lane < x->ring->lanes + x->ring->lane_count; lane++)
        if (lane->step_in < x->count)
            return 0;
    return 1;
}

uint64_t tb_awaited(const tb_exchange *x)
{
    uint64_t positions = 0;
    if (x->in_order)
        return x->applied < x->count && x->steps[x->applied].from >= 0 ? tb_bit(x->steps[x->applied].from) : 0;
    for (const tb_lane *lane = x->ring->lanes; lane < x->ring->lanes + x->ring->lane_count; lane++)
        if (lane->step_in < x->count)
            positions |= tb_bit(lane->peer);
    return positions;
}

int tb_all_sent(const tb_exchange *x)
{
    for (const tb_lane *lane = x->ring->lanes; lane < x->ring->lanes + x->ring->lane_count; lane++)
        if (lane->step_out < x->count || lane->out_busy)
            return 0;
    return 1;
}

/* The result. */

void tb_finish_meeting(tb_exchange *x)
{
    const tb_task *task = x->task;
    const tb_ring *ring = x->ring;
    const void *arrays[TB_POSITIONS_MAX];
    size_t bytes = task->bytes, offset = 0;
    unsigned char *target = task->target;
    if (!target || !bytes)
        return;
    if (task->kind == TB_REDUCE_SCATTER) {
        bytes /= ring->positions;
        offset = ring->position * bytes;
    }
    for (int position = 0; position < ring->positions; position++) {
        const tb_peer *peer = &ring->peers[position];
        arrays[position] = position == ring->position ? (const unsigned char *)task->source + offset
                                                      : peer->meet + peer->claim_bytes + offset;
    }
    if (task->kind == TB_BROADCAST)
        memmove(target, arrays[task->root], bytes);
    else if (task->kind == TB_ALL_GATHER)
        for (int position = 0; position < ring->positions; position++)
            memmove(target + position * bytes, arrays[position], bytes);
    else
        task->kernel(target, arrays, ring->positions, bytes / task->item_bytes, task->divisor, 0);
}

void tb_finish_steps(tb_exchange *x)
{
    const tb_task *task = x->task;
    stretch part = part_of(x, x->ring->position);
    unsigned char *target = task->target;
    if (!target)
        return;
    if (task->kind == TB_ALL_GATHER)
        memmove(target + part.start, task->source, part.bytes);
    else if (task->kind == TB_BROADCAST && x->ring->position == task->root)
        memmove(target, task->source, task->bytes);
    else if (task->kind == TB_REDUCE_SCATTER && !task->scratch)
        memcpy(target, x->base + part.start, part.bytes);
}

void tb_take_back(tb_exchange *x)
{
    for (const tb_step *step = x->steps; step < x->steps + x->count; step++)
        if (step->kept) {
            size_t bytes = least(step->kept * x->piece_bytes, step->receive_bytes);
            tb_undo_restore(&x->ring->undo, x->task->target, step->receive_at, bytes);
        }
}

void tb_hold_back(tb_exchange *x)
{
    for (const tb_step *step = x->steps; step < x->steps + x->count; step++)
        if (step->kept) {
            size_t bytes = least(step->kept * x->piece_bytes, step->receive_bytes);
            tb_undo_swap(&x->ring->undo, x->task->target, step->receive_at, bytes);
        }
}
