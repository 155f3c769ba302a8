/* What kinds of operations mean: how those go that need no ring, what short arrays take with them, and what is the result.

   gather, scatter, all_to_all: each part goes straight to the one that it is for, over the link to it, so each byte crosses a
   network once. In step d - 1 a position sends to the one d behind it and receives from the one d before it. Of long parts of an
   all_to_all a step begins when what the last one brings has come: who is sent to hears one other at a time, and each wire is busy
   in both directions all the same. All else goes at once: a root has one wire, whoever goes first.

     step of 4 positions      0                    1                    2
     all_to_all               0>1 1>2 2>3 3>0      0>2 1>3 2>0 3>1      0>3 1>0 2>1 3>2
     gather to 0                          3>0              2>0              1>0
     scatter from 0           0>1                  0>2                  0>3

   reduce: from the position behind the root around to the root, which is broadcast the other way: piece by piece each adds its own
   array to what comes, in that order, and hands it on. In between, sums lie in memory of the engine's own.

   A short array, or the part of one that another position needs, is in MEET: then there are no steps. */
#define _GNU_SOURCE
#include "ring_engine_operation.h"

#include <string.h>

#include "broker/copy_bytes.h"

static int has_one_root(const tb_task *task) { return task->kind == TB_BROADCAST || task->kind == TB_SCATTER; }

static int is_for_root(const tb_task *task) { return task->kind == TB_REDUCE || task->kind == TB_GATHER; }

/* Whether a position that gets something gets it from all, one behind the other. */
static int gathers(const tb_task *task)
{
    return task->kind == TB_ALL_GATHER || task->kind == TB_GATHER || task->kind == TB_ALL_TO_ALL;
}

/* Whether there is anything to go from one position to another one. */
static int goes(const tb_task *task, int from, int to)
{
    return (!has_one_root(task) || from == task->root) && (!is_for_root(task) || to == task->root);
}

static void plan_direct(tb_exchange *x)
{
    const tb_task *task = x->task;
    int positions = x->ring->positions, position = x->ring->position;
    for (int distance = 1; distance < positions; distance++) {
        int to = (position + distance) % positions, from = (position + positions - distance) % positions;
        tb_stretch sent = tb_part_of(x, to), received = tb_part_of(x, from);
        if (task->kind == TB_GATHER)
            sent.start = 0;
        if (task->kind == TB_SCATTER)
            received.start = 0;
        int sends = goes(task, position, to), receives = goes(task, from, position);
        tb_step *step = tb_add_step(x, sends ? to : -1, sent, receives ? from : -1, received);
        step->given = 1;
        step->needs = -1;
        if (task->kind == TB_ALL_TO_ALL && sent.bytes > TB_PIECE_BYTES)
            step->follows = x->count - 2;
    }
}

static void plan_reduce(tb_exchange *x)
{
    int positions = x->ring->positions, position = x->ring->position;
    int place = (position + positions - x->task->root - 1) % positions;
    int right = place < positions - 1 ? (position + 1) % positions : -1;
    int left = place ? (position + positions - 1) % positions : -1;
    tb_stretch whole = {0, x->task->bytes};
    tb_step *step = tb_add_step(x, right, whole, left, whole);
    step->given = !place;
    step->needs = place ? 0 : -1;
    step->reduces = 1;
    step->closes = right < 0;
}

void tb_plan_kind(tb_exchange *x)
{
    if (x->task->kind == TB_REDUCE)
        plan_reduce(x);
    else
        plan_direct(x);
}

tb_stretch tb_row(const tb_exchange *x, int from, int to)
{
    const tb_task *task = x->task;
    if (!x->is_short || !goes(task, from, to))
        return (tb_stretch){0, 0};
    return tb_shares_out(task) ? tb_part_of(x, to) : (tb_stretch){0, task->bytes};
}

void tb_finish_meeting(tb_exchange *x)
{
    const tb_task *task = x->task;
    const tb_ring *ring = x->ring;
    const void *arrays[TB_POSITIONS_MAX];
    size_t bytes = tb_shares_out(task) ? task->bytes / ring->positions : task->bytes;
    size_t own = tb_shares_out(task) ? ring->position * bytes : 0;
    unsigned char *target = task->target;
    if (!target || !bytes)
        return;
    for (int position = 0; position < ring->positions; position++) {
        const tb_peer *peer = &ring->peers[position];
        arrays[position] = position == ring->position ? (const unsigned char *)task->source + own
                                                      : peer->meet + peer->claim_bytes;
    }
    if (has_one_root(task))
        memmove(target, arrays[task->root], bytes);
    else if (gathers(task))
        for (int position = 0; position < ring->positions; position++)
            memmove(target + position * bytes, arrays[position], bytes);
    else
        task->kernel(target, arrays, ring->positions, bytes / task->item_bytes, task->divisor, 0, NULL);
}

void tb_finish_steps(tb_exchange *x)
{
    const tb_task *task = x->task;
    tb_stretch part = tb_part_of(x, x->ring->position);
    const unsigned char *source = task->source;
    unsigned char *target = task->target;
    if (!target)
        return;
    if (gathers(task))
        memmove(target + part.start, task->kind == TB_ALL_TO_ALL ? source + part.start : source, part.bytes);
    else if (task->kind == TB_BROADCAST && x->ring->position == task->root)
        memmove(target, source, task->bytes);
    else if (task->kind == TB_SCATTER && x->ring->position == task->root)
        memmove(target, source + part.start, part.bytes);
    else if (task->kind == TB_REDUCE_SCATTER && !task->scratch)
        copy_bytes(target, x->base + part.start, part.bytes);
}
