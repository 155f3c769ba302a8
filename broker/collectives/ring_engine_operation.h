/* What the files of an engine of links know of one another: ring_engine_operation.c takes an operation through its phases,
   ring_engine_steps.c says which bytes go where, ring_engine_hosts.c what that is where hosts have several ranks, ring_engine_kinds.c
   what that is for the kinds that need no ring and what comes of it, ring_engine_lanes.c moves them. */
#ifndef TENSORBUS_RING_ENGINE_OPERATION_H
#define TENSORBUS_RING_ENGINE_OPERATION_H

#include "ring_engine.h"

enum { TB_MOMENT_NS = 250000000 }; /* For others to answer; as limits.MISMATCH_GRACE_NS. */

static inline uint64_t tb_bit(int position) { return 1ull << position; }
static inline uint64_t tb_others(const tb_ring *ring)
{
    return ~0ull >> (TB_POSITIONS_MAX - ring->positions) & ~tb_bit(ring->position);
}

/* A part of an array. */
typedef struct {
    size_t start, bytes;
} tb_stretch;

/* Whether each position gets a part of the array. */
static inline int tb_shares_out(const tb_task *task)
{
    return task->kind == TB_REDUCE_SCATTER || task->kind == TB_SCATTER || task->kind == TB_ALL_TO_ALL;
}

/* Steps. */

/* The part of an array that is a position's, counted around: where it lies in what all of them make up. */
tb_stretch tb_part_of(const tb_exchange *x, int part);

/* Whether a piece has come; of a step in which nobody sends, it has. */
int tb_has_arrived(const tb_exchange *x, int step, size_t piece);

/* Sums that are rounded once (ring_engine_at_once.c): whether the operation's is one, its plan, and the adding of what has come. */
int tb_adds_at_once(const tb_task *task);
void tb_plan_at_once(tb_exchange *x);
void tb_add_at_once(tb_exchange *x);

/* The part of a stretch that is cut into so many. */
tb_stretch tb_cut(tb_stretch whole, size_t parts, size_t part);

/* Adds a step to the plan; -1 is nobody. */
tb_step *tb_add_step(tb_exchange *x, int to, tb_stretch sent, int from, tb_stretch received);

/* Lays an operation out; 0 when there is no memory. */
int tb_plan_steps(tb_exchange *x);

/* Whether the piece that a lane is to send is there; says where. */
int tb_piece_to_send(tb_exchange *x, tb_lane *lane);

/* Whether the piece of a head that has come is the one that is expected. Remembers what it will change. */
int tb_expect_piece(tb_exchange *x, tb_lane *lane);

/* Where the bytes of an expected piece belong that come next; what to do when some have come, and all. */
unsigned char *tb_piece_place(tb_exchange *x, tb_lane *lane);
void tb_piece_grew(tb_exchange *x, tb_lane *lane);
void tb_piece_came(tb_exchange *x, tb_lane *lane);

/* Whether all of the result is here, and all that others need of it is sent. */
int tb_all_here(tb_exchange *x);
int tb_all_sent(const tb_exchange *x);

/* From whom the pieces are that come next. */
uint64_t tb_awaited(const tb_exchange *x);

/* Takes the array back to what it was; or holds the result back, so that the next call brings it. */
void tb_take_back(tb_exchange *x);
void tb_hold_back(tb_exchange *x);

/* Lays out an all_reduce by hosts; 0 when that is not better than a ring, or needs too many steps. */
int tb_plan_hosts(tb_exchange *x);

/* Kinds. */

/* Lays out a reduce, gather, scatter or all_to_all. */
void tb_plan_kind(tb_exchange *x);

/* What of its array, if that is short, one position sends another one with MEET. */
tb_stretch tb_row(const tb_exchange *x, int from, int to);

/* Makes the result of short arrays; puts what is not there yet of the result of others into the target. */
void tb_finish_meeting(tb_exchange *x);
void tb_finish_steps(tb_exchange *x);

/* Lanes. */

/* Puts a word to a position, or to all, on its way. */
void tb_say(tb_exchange *x, int position, tb_head head, const void *body, const void *more, size_t more_bytes);
void tb_say_all(tb_exchange *x, tb_kind_of_word kind, int code, uint64_t first, uint64_t second);

/* Drops what was not sent of earlier operations, but for some words that say why they failed. */
void tb_forget_words(tb_peer *peer);

/* Moves what can be moved at once; says whether anything has. */
int tb_receive(tb_exchange *x, tb_lane *lane);
int tb_send(tb_exchange *x, tb_lane *lane);

/* Sends what is left of earlier operations; says whether there is more. */
int tb_send_leftover(void *ring);

/* Ends all links, behind what was sent; their descriptors stay. */
void tb_shut(tb_ring *ring);

/* Waits until lanes can be moved, or the engine ends; says whether that is so. */
int tb_watch(tb_ring *ring, uint64_t timeout_ns);

/* The same, in the way that costs least when it is not for long. `now` is the time. */
void tb_wait(tb_ring *ring, uint64_t now, uint64_t timeout_ns);

/* The log (ring_engine_log.c). */

void tb_link_log_begin(tb_link_log *log, const tb_task *task, uint64_t sequence);
void tb_link_log_end(tb_link_log *log, const tb_task *task, uint64_t sequence, int status, uint64_t ended_ns);
void tb_link_log_settle(tb_link_log *log, uint64_t sequence, int status);

/* Where an operation is that takes long, and for which positions this one waits. */
void tb_link_log_see(tb_link_log *log, const tb_exchange *x, uint64_t waits_for);

/* The operation. */

int tb_ring_carry_out(void *ring, tb_task *task);

/* What the lanes tell: a whole word; that a link has ended; that a position is further; that what came cannot be. */
void tb_word_came(tb_exchange *x, tb_lane *lane);
void tb_lost(tb_exchange *x, int position);
void tb_left_behind(tb_exchange *x, int position);
void tb_rubbish(tb_exchange *x);

#endif
