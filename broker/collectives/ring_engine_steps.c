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

   float16, bfloat16 and blocks of int8 do not go around a ring (ring_engine_at_once.c). By halving, and by hosts, they are added in
   float32 and rounded at each step at which they are added. A mean is divided at the last of them, before that one is rounded. So
   a sum on its way may be too large for a float16, and is infinite then. */
#define _GNU_SOURCE
#include "ring_engine_operation.h"

#include <string.h>

#include "broker/copy_bytes.h"

enum {
    PART_BYTES = 64,
    /* As measured (python -m bench.engine --ring): below it, fewer steps count for more than steps that overlap. */
    HALVING_BYTES = 128 << 10,
};

static size_t least(size_t first, size_t second) { return first < second ? first : second; }

static size_t pieces(const tb_exchange *x, size_t bytes) { return (bytes + x->piece_bytes - 1) / x->piece_bytes; }

static size_t piece_bytes(const tb_exchange *x, size_t bytes, size_t piece)
{
    return least(bytes - piece * x->piece_bytes, x->piece_bytes);
}

/* The schedules. */

tb_stretch tb_cut(tb_stretch whole, size_t parts, size_t part)
{
    size_t step = (whole.bytes + parts * PART_BYTES - 1) / (parts * PART_BYTES) * PART_BYTES;
    size_t start = least(part * step, whole.bytes);
    return (tb_stretch){whole.start + start, least(step, whole.bytes - start)};
}

tb_stretch tb_part_of(const tb_exchange *x, int part)
{
    size_t positions = x->ring->positions, bytes = x->task->bytes;
    part = (part % (int)positions + positions) % positions;
    if (x->task->kind == TB_ALL_GATHER || x->task->kind == TB_GATHER)
        return (tb_stretch){part * bytes, bytes};
    if (tb_shares_out(x->task))
        return (tb_stretch){part * (bytes / positions), bytes / positions};
    return tb_cut((tb_stretch){0, bytes}, positions, part);
}

tb_step *tb_add_step(tb_exchange *x, int to, tb_stretch sent, int from, tb_stretch received)
{
    tb_step *step = &x->steps[x->count++];
    *step = (tb_step){.to = to, .from = from, .given = x->count == 1, .needs = x->count - 2, .follows = -1, .awaits = -1};
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
            tb_add_step(x, right, tb_part_of(x, position - 1 - turn), left, tb_part_of(x, position - 2 - turn));
        step->reduces = 1;
        step->closes = turn == positions - 2;
    }
    for (int turn = 0; turn < positions - 1 && kind != TB_REDUCE_SCATTER; turn++)
        tb_add_step(x, right, tb_part_of(x, position - turn), left, tb_part_of(x, position - 1 - turn));
    /* The first step sends of the own array, which is one part here. */
    if (kind == TB_ALL_GATHER)
        x->steps[0].send_at = 0;
}

static void plan_broadcast(tb_exchange *x)
{
    int positions = x->ring->positions, place = (x->ring->position - x->task->root + positions) % positions;
    int right = place < positions - 1 ? (x->ring->position + 1) % positions : -1;
    int left = place ? (x->ring->position + positions - 1) % positions : -1;
    tb_stretch whole = {0, x->task->bytes};
    tb_add_step(x, right, whole, left, whole)->needs = place ? 0 : -1;
}

static void add_reduction(tb_exchange *x, int to, tb_stretch sent, int from, tb_stretch received)
{
    tb_step *step = tb_add_step(x, to, sent, from, received);
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
    tb_stretch whole = {0, x->task->bytes}, kept[8], given[8];
    int paired = position < 2 * pairs, gives = paired && position % 2 == 0;
    x->in_order = 1;
    /* Steps have the same numbers everywhere. */
    if (pairs)
        add_reduction(x, gives ? position + 1 : -1, whole, paired && !gives ? position - 1 : -1, whole);
    if (gives)
        while (x->count < 1 + 2 * logarithm(many))
            tb_add_step(x, -1, whole, -1, whole);
    for (int distance = many / 2; distance && !gives; distance /= 2, depth++) {
        size_t half = least((whole.bytes / 2 + PART_BYTES - 1) / PART_BYTES * PART_BYTES, whole.bytes);
        tb_stretch lower = {whole.start, half}, upper = {whole.start + half, whole.bytes - half};
        kept[depth] = number & distance ? upper : lower;
        given[depth] = number & distance ? lower : upper;
        int partner = halving_position(number ^ distance, pairs);
        add_reduction(x, partner, given[depth], partner, kept[depth]);
        whole = kept[depth];
    }
    x->steps[x->count - 1].closes = !gives;
    for (int distance = 1; depth--; distance *= 2) {
        int partner = halving_position(number ^ distance, pairs);
        tb_add_step(x, partner, kept[depth], partner, given[depth]);
    }
    whole = (tb_stretch){0, x->task->bytes};
    if (pairs)
        tb_add_step(x, paired && !gives ? position - 1 : -1, whole, gives ? position + 1 : -1, whole);
}

/* Whether the target changes before the verdict, and has to be as it was after a failure. */
static int remembers(const tb_task *task)
{
    return task->target && !task->scratch && task->kind != TB_REDUCE_SCATTER;
}

/* Whether what comes is put together in memory that is not the target's. */
static int lies_beside(const tb_task *task) { return task->kind == TB_REDUCE_SCATTER || !task->target; }

/* Bytes of memory beside the arrays: for what comes, or for what the target held. */
static size_t beside(const tb_exchange *x)
{
    size_t end = 0;
    if (!lies_beside(x->task))
        return remembers(x->task) ? x->task->target_bytes : 0;
    for (const tb_step *step = x->steps; step < x->steps + x->count; step++)
        if (step->receive_bytes && step->receive_at + step->receive_bytes > end)
            end = step->receive_at + step->receive_bytes;
    return end;
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
    x->base = lies_beside(task) ? x->ring->undo.memory : task->target;
    /* Steps in order add to what is there more than once. They receive into all of the array. */
    if (x->in_order && x->own != x->base) {
        for (tb_step *step = x->steps; step < x->steps + x->count; step++)
            keep(x, step, pieces(x, step->receive_bytes));
        copy_bytes(x->base, x->own, task->bytes);
        x->own = x->base;
    }
}

int tb_plan_steps(tb_exchange *x)
{
    const tb_task *task = x->task;
    tb_ring *ring = x->ring;
    x->is_short = (tb_shares_out(task) ? task->bytes / ring->positions : task->bytes) <= ring->short_bytes ||
                  ring->positions == 1;
    x->count = x->in_order = x->applied = 0;
    x->spare_bytes = 0;
    x->piece_bytes = TB_PIECE_BYTES;
    int halves = task->schedule == TB_HALVING ||
                 (task->schedule == TB_AUTO && task->bytes <= HALVING_BYTES && ring->positions > 2 && !tb_adds_at_once(task));
    if (x->is_short || task->impossible)
        ;
    else if (task->kind == TB_BROADCAST)
        plan_broadcast(x);
    else if (task->kind >= TB_REDUCE)
        tb_plan_kind(x);
    else if (task->kind == TB_ALL_REDUCE && halves)
        plan_halving(x);
    else if (task->kind == TB_ALL_REDUCE && task->schedule == TB_HIERARCHICAL && tb_plan_hosts(x))
        ;
    else if (tb_adds_at_once(task))
        tb_plan_at_once(x);
    else
        plan_ring(x);
    mark_kept(x);
    for (tb_lane *lane = ring->lanes; lane < ring->lanes + ring->lane_count; lane++) {
        lane->step_in = lane->step_out = 0;
        lane->piece_in = lane->piece_out = lane->number;
        next_in(x, lane);
        next_out(x, lane);
    }
    size_t wanted = beside(x);
    if ((x->count && wanted && !tb_undo_reserve(&ring->undo, wanted)) ||
        (x->spare_bytes && !tb_undo_reserve(&ring->spare, x->spare_bytes)))
        return 0;
    if (x->count)
        choose_memory(x);
    apply_in_order(x);
    return 1;
}

/* Pieces. */

int tb_has_arrived(const tb_exchange *x, int step, size_t piece)
{
    int from = x->steps[step].from;
    if (from < 0)
        return 1;
    const tb_peer *peer = &x->ring->peers[from];
    const tb_lane *lane = &peer->lanes[piece % peer->count];
    return lane->step_in > step || (lane->step_in == step && lane->piece_in > piece);
}

static int has_come(const tb_exchange *x, int step, size_t piece)
{
    if (step < x->at_once)
        return x->summed > piece;
    return x->steps[step].awaits >= 0 ? x->steps[step].added > piece : tb_has_arrived(x, step, piece);
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
    const unsigned char *own = (step->awaits >= 0 ? x->base : x->own) + at;
    const void *sources[2] = {received, own};
    unsigned char *out = x->base + at;
    if (x->in_order && step->from > x->ring->position)
        sources[0] = own, sources[1] = received;
    if (step->closes && task->kind == TB_REDUCE_SCATTER && task->scratch)
        out = (unsigned char *)task->target + (at - step->receive_at);
    task->kernel(out, sources, 2, bytes / task->item_bytes, step->closes ? task->divisor : 1, 0, NULL);
}

static void apply_in_order(tb_exchange *x)
{
    while (x->in_order && x->applied < x->count && have_all_come(x, x->applied)) {
        const tb_step *step = &x->steps[x->applied++];
        if (step->reduces && step->receive_bytes)
            reduce(x, step, x->ring->spare.memory + step->spare_at, step->receive_at, step->receive_bytes);
    }
}

/* Adds the pieces that have waited for those to which they are added. */
static void apply_awaiting(tb_exchange *x)
{
    for (int number = 0; number < x->count && !x->in_order && x->spare_bytes; number++) {
        tb_step *step = &x->steps[number];
        const unsigned char *waiting = x->ring->spare.memory + step->spare_at;
        while (step->awaits >= 0 && step->added < pieces(x, step->receive_bytes) &&
               tb_has_arrived(x, number, step->added) && has_come(x, step->awaits, step->added)) {
            size_t at = step->added * x->piece_bytes, bytes = piece_bytes(x, step->receive_bytes, step->added);
            reduce(x, step, waiting + at, step->receive_at + at, bytes);
            step->added++;
        }
    }
}

/* Whether what comes in a step waits in memory of its own. */
static int waits(const tb_exchange *x, const tb_step *step)
{
    return x->in_order || step->awaits >= 0 || step < x->steps + x->at_once;
}

static int may_be_sent(const tb_exchange *x, const tb_step *step, size_t piece)
{
    return (step->needs < 0 || has_come(x, step->needs, piece)) &&
           (step->follows < 0 || have_all_come(x, step->follows));
}

int tb_piece_to_send(tb_exchange *x, tb_lane *lane)
{
    if (x->verdict || x->gathering || lane->step_out >= x->count)
        return 0;
    const tb_step *step = &x->steps[lane->step_out];
    size_t piece = lane->piece_out;
    if (x->in_order ? x->applied < lane->step_out : !may_be_sent(x, step, piece))
        return 0;
    lane->out = (tb_head){
        TB_LINK_MAGIC, TB_PIECE, 0, piece_bytes(x, step->send_bytes, piece), lane->step_out, x->sequence, piece, 0,
    };
    lane->out_body = (step->given ? x->own : x->base) + step->send_at + piece * x->piece_bytes;
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
    return waits(x, step) ? x->ring->spare.memory + step->spare_at + at : lane->stage + lane->body_bytes;
}

void tb_piece_grew(tb_exchange *x, tb_lane *lane)
{
    const tb_step *step = &x->steps[lane->step_in];
    size_t bytes = lane->body_bytes - lane->reduced, at = step->receive_at + lane->piece_in * x->piece_bytes;
    if (!step->reduces || waits(x, step))
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
    apply_awaiting(x);
    tb_add_at_once(x);
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
