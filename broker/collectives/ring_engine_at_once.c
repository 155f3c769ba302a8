/* Sums that would lose something at each addition: of float16 and bfloat16, which are rounded, and of blocks of int8, which get
   another scale. Around a ring that is n - 1 times for n positions. Here each position adds up one part of the array, of all
   positions at once: in float32, in the order of the positions, and rounded once, to the same bits as on a board and by the broker. As
   many bytes go over each wire as on a ring, and what has come waits for the others in memory of its own.

   Of 4 positions, seen from position 1:

     step           0    1    2    3    4    5
     send           2    3    0    1    0    3      to 2, 3, 0: its own array's part that these add up; then to 2, around a ring
     receive        1    1    1    0    3    2      from 0, 3, 2: their arrays' part 1; then from 0
                    - added up --  -- copied --

   Of long parts a step begins when what the last one brings has come, as in an all_to_all. Sums of short ones go straight to all. */
#include "ring_engine_operation.h"

enum { SHORT_BYTES = 2, BLOCK_BYTES = 64 };

int tb_adds_at_once(const tb_task *task)
{
    /* Short integers are among them, which lose nothing either way. */
    return (task->kind == TB_ALL_REDUCE || task->kind == TB_REDUCE_SCATTER) &&
           (task->item_bytes == SHORT_BYTES || task->item_bytes == BLOCK_BYTES);
}

static void plan_sums(tb_exchange *x, tb_stretch own, int is_long)
{
    int positions = x->ring->positions, position = x->ring->position;
    for (int distance = 1; distance < positions; distance++) {
        int to = (position + distance) % positions, from = (position + positions - distance) % positions;
        tb_step *step = tb_add_step(x, to, tb_part_of(x, to), from, own);
        step->given = step->reduces = 1;
        step->needs = -1;
        step->follows = is_long ? x->count - 2 : -1;
        step->spare_at = x->spare_bytes;
        x->spare_bytes += own.bytes;
    }
    x->at_once = x->count;
}

static void plan_spread(tb_exchange *x, tb_stretch own, int is_long)
{
    int positions = x->ring->positions, position = x->ring->position;
    int right = (position + 1) % positions, left = (position + positions - 1) % positions;
    for (int turn = 0; turn < positions - 1; turn++) {
        int to = (position + turn + 1) % positions, from = (position + positions - turn - 1) % positions;
        if (is_long)
            tb_add_step(x, right, tb_part_of(x, position - turn), left, tb_part_of(x, position - 1 - turn));
        else
            tb_add_step(x, to, own, from, tb_part_of(x, from))->needs = x->at_once - 1;
    }
}

void tb_plan_at_once(tb_exchange *x)
{
    tb_stretch own = tb_part_of(x, x->ring->position);
    /* The same on all positions: the first part is the longest. */
    int is_long = tb_part_of(x, 0).bytes > TB_PIECE_BYTES;
    plan_sums(x, own, is_long);
    if (x->task->kind == TB_ALL_REDUCE)
        plan_spread(x, own, is_long);
}

static void add_piece(const tb_exchange *x, size_t at, size_t bytes)
{
    const tb_task *task = x->task;
    const void *sources[TB_POSITIONS_MAX];
    size_t start = x->steps[0].receive_at;
    unsigned char *out = x->base + start;
    for (const tb_step *step = x->steps; step < x->steps + x->at_once; step++)
        sources[step->from] = x->ring->spare.memory + step->spare_at + at;
    sources[x->ring->position] = x->own + start + at;
    if (task->kind == TB_REDUCE_SCATTER && task->scratch)
        out = task->target;
    task->kernel(out + at, sources, x->ring->positions, bytes / task->item_bytes, task->divisor, 0, NULL);
}

void tb_add_at_once(tb_exchange *x)
{
    for (size_t at; x->at_once && (at = x->summed * x->piece_bytes) < x->steps[0].receive_bytes; x->summed++) {
        for (int step = 0; step < x->at_once; step++)
            if (!tb_has_arrived(x, step, x->summed))
                return;
        size_t left = x->steps[0].receive_bytes - at;
        add_piece(x, at, left < x->piece_bytes ? left : x->piece_bytes);
    }
}
