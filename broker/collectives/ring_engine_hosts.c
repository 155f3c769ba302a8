/* hierarchical: an all_reduce of hosts that have several ranks each, of which each byte of a long array crosses between hosts once.
   A short one, which goes with its claim (ring_engine_operation.c, short_bytes), has no plan, and crosses once for each pair of ranks.

   Ranks of a host have the order of their positions, and so have hosts, by their first one. The array is cut into a shard for
   each rank of the host that has fewest, and each shard into a part for each host. What several ranks of a host would all
   send to another host, one of them sends for all: the owner of the shard, which is the rank with its number.

     inside    each shard goes around its host, from the rank behind its owner to its owner, and is added up
     between   the owners of a shard, one on each host, add it up and spread it around a ring, as ring_engine_steps.c does
     inside    each shard goes around its host once more, as a sum

   Two hosts of two ranks; shard s has the parts s.0 and s.1. Seen from rank 0 of host 0, which owns shard 0:

     step              0    1    2    3    4    5
     inside, to 1     1.1  1.0            0.0  0.1
     inside, from 1   0.1  0.0            1.0  1.1
     between, to                 0.1  0.0
     between, from               0.0  0.1
                      -- added ----  -- copied --

   A part moves on, piece by piece, as soon as it is there: the wire between hosts is busy while ranks of a host add up. What comes
   from another host before the own host's sum is there waits in memory of its own.

   Bytes inside a host go over links as all others do. Every rank adds in the same order, and results have the same bits. */
#define _GNU_SOURCE
#include "ring_engine_operation.h"

/* Of one operation, seen from one position. */
typedef struct {
    int hosts, most, fewest;        /* Ranks of a host. */
    int host, rank, ranks;          /* The own one; the rank on it; how many it has. */
    int neighbours[2];              /* On this host: the rank before and the rank behind. */
    int owners[TB_POSITIONS_MAX];   /* On each host, the position with this one's rank. */
} layout;

static int around(int number, int count) { return (number % count + count) % count; }

static void find_layout(const tb_ring *ring, layout *of)
{
    int ranks[TB_POSITIONS_MAX] = {0}, members[TB_POSITIONS_MAX], own = ring->position;
    *of = (layout){.host = ring->hosts[own], .fewest = TB_POSITIONS_MAX};
    for (int position = 0; position < ring->positions; position++) {
        int host = ring->hosts[position];
        of->rank = position == own ? ranks[host] : of->rank;
        if (host == of->host)
            members[of->ranks++] = position;
        ranks[host]++;
        of->hosts = host >= of->hosts ? host + 1 : of->hosts;
    }
    for (int host = 0; host < of->hosts; host++) {
        of->most = ranks[host] > of->most ? ranks[host] : of->most;
        of->fewest = ranks[host] < of->fewest ? ranks[host] : of->fewest;
        ranks[host] = 0;
    }
    for (int position = 0; position < ring->positions; position++)
        if (ranks[ring->hosts[position]]++ == of->rank)
            of->owners[ring->hosts[position]] = position;
    of->neighbours[0] = members[around(of->rank - 1, of->ranks)];
    of->neighbours[1] = members[around(of->rank + 1, of->ranks)];
}

/* A part of a shard, both counted around; nothing of a shard that nobody owns. */
static tb_stretch find(const tb_exchange *x, const layout *of, int shard, int part)
{
    shard = around(shard, of->ranks);
    if (shard >= of->fewest)
        return (tb_stretch){0, 0};
    tb_stretch whole = tb_cut((tb_stretch){0, x->task->bytes}, of->fewest, shard);
    return tb_cut(whole, of->hosts, around(part, of->hosts));
}

/* Steps have the same numbers on all hosts. */
static void skip_to(tb_exchange *x, int count)
{
    while (x->count < count)
        tb_add_step(x, -1, (tb_stretch){0, 0}, -1, (tb_stretch){0, 0});
}

static void plan_sums_inside(tb_exchange *x, const layout *of)
{
    for (int turn = 0; turn < of->ranks - 1; turn++)
        for (int each = 0; each < of->hosts; each++) {
            /* In the order in which they are sent to other hosts. */
            int part = of->host - 1 - each;
            tb_stretch sent = find(x, of, of->rank - 1 - turn, part);
            tb_stretch received = find(x, of, of->rank - 2 - turn, part);
            tb_step *step = tb_add_step(x, of->neighbours[1], sent, of->neighbours[0], received);
            step->given = !turn;
            step->needs = turn ? x->count - 1 - of->hosts : -1;
            step->reduces = 1;
        }
}

static void plan_ring_between(tb_exchange *x, const layout *of)
{
    int right = of->owners[around(of->host + 1, of->hosts)], left = of->owners[around(of->host - 1, of->hosts)];
    int alone = of->ranks == 1, last = (of->ranks - 2) * of->hosts;
    for (int turn = 0; turn < of->hosts - 1; turn++) {
        tb_stretch sent = find(x, of, of->rank, of->host - 1 - turn);
        tb_stretch received = find(x, of, of->rank, of->host - 2 - turn);
        tb_step *step = tb_add_step(x, right, sent, left, received);
        step->reduces = 1;
        step->closes = turn == of->hosts - 2;
        if (!turn) {
            step->given = alone;
            step->needs = alone ? -1 : last;
        }
        if (!alone) {
            step->awaits = last + turn + 1;
            step->spare_at = x->spare_bytes;
            x->spare_bytes += received.bytes;
        }
    }
    for (int turn = 0; turn < of->hosts - 1; turn++)
        tb_add_step(x, right, find(x, of, of->rank, of->host - turn), left, find(x, of, of->rank, of->host - 1 - turn));
}

static void plan_spread_inside(tb_exchange *x, const layout *of, int summed)
{
    for (int turn = 0; turn < of->ranks - 1; turn++)
        for (int each = 0; each < of->hosts; each++) {
            /* In the order in which they are there. */
            int part = of->host - each;
            tb_stretch sent = find(x, of, of->rank - turn, part), received = find(x, of, of->rank - 1 - turn, part);
            tb_step *step = tb_add_step(x, of->neighbours[1], sent, of->neighbours[0], received);
            step->needs = turn ? x->count - 1 - of->hosts : summed + each;
        }
}

int tb_plan_hosts(tb_exchange *x)
{
    layout of;
    find_layout(x->ring, &of);
    int inside = (of.most - 1) * of.hosts, between = 2 * (of.hosts - 1);
    if (of.hosts < 2 || of.most < 2 || 2 * inside + between > TB_STEPS_MAX)
        return 0;
    plan_sums_inside(x, &of);
    skip_to(x, inside);
    if (of.rank < of.fewest)
        plan_ring_between(x, &of);
    skip_to(x, inside + between);
    plan_spread_inside(x, &of, inside + of.hosts - 2);
    return 1;
}
