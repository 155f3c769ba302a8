/* How an operation goes, seen from one position; ring_engine.h has the words and why they suffice.

     begin     forget the last one; MEET to all
     turn      move what can be moved; gather, promise, commit, or fail, when it is time; else look at clock and signals,
               and sleep until there is something to move
     end       after a failure the array is as it was, and ABORT has been said to all */
#define _GNU_SOURCE
#include "ring_engine_operation.h"
#include "rounding.h"

#include <string.h>

enum {
    SLICE_NS = 50000000, /* Python looks at its signals at least as often as twice this. */
    SHORT_BYTES = 256 << 10,
};

/* What is known of the others. */

static uint64_t met(const tb_exchange *x)
{
    uint64_t positions = tb_bit(x->ring->position);
    for (int position = 0; position < x->ring->positions; position++)
        if (x->ring->peers[position].met)
            positions |= tb_bit(position);
    return positions;
}

static uint64_t unready(const tb_exchange *x)
{
    uint64_t positions = 0;
    for (int position = 0; position < x->ring->positions; position++)
        if (position != x->ring->position && !x->ring->peers[position].ready)
            positions |= tb_bit(position);
    return positions;
}

/* Of these, those from whom nothing has come since the deadline; when `answers` are asked for, those who have not said that
   they heard of it. */
static uint64_t silent(const tb_exchange *x, uint64_t positions, int answers)
{
    for (int position = 0; position < x->ring->positions; position++) {
        const tb_peer *peer = &x->ring->peers[position];
        if (peer->hurried || (!answers && peer->heard))
            positions &= ~tb_bit(position);
    }
    return positions;
}

static uint64_t gone(const tb_exchange *x)
{
    uint64_t positions = 0;
    for (int position = 0; position < x->ring->positions; position++)
        if (x->ring->peers[position].gone)
            positions |= tb_bit(position);
    return positions;
}

/* Failing. */

/* For good: who calls knows that nobody can commit. */
static void fail(tb_exchange *x, int code, uint64_t positions, uint64_t timeout_ns)
{
    if (x->verdict)
        return;
    x->verdict = code;
    x->positions = positions;
    x->timeout_ns = timeout_ns;
    tb_say_all(x, TB_ABORT, code, positions, timeout_ns);
}

/* As far as this position can, with a moment for others to say what they know. `positions` have given up, if it is that. */
static void close_down(tb_exchange *x, int doubt, uint64_t positions, uint64_t timeout_ns, uint64_t now)
{
    if (x->closing_ns)
        return;
    x->closing_ns = now + TB_MOMENT_NS;
    x->closing_positions = positions;
    x->closing_timeout_ns = timeout_ns;
    x->doubt = doubt;
    for (int position = 0; position < x->ring->positions; position++)
        x->ring->peers[position].heard = 0;
    if (doubt != TB_OVER)
        tb_say_all(x, TB_HURRY, doubt, positions, timeout_ns);
}

/* The program of this position wants no more of it. */
static void give_up(tb_exchange *x, uint64_t now)
{
    if (x->promised)
        close_down(x, TB_INTERRUPTED, tb_bit(x->ring->position), 0, now);
    else
        fail(x, TB_INTERRUPTED, tb_bit(x->ring->position), 0);
}

/* Ends an operation whose deadline is over, or that has lost a link, once nothing more is to be expected. */
static int resolve(tb_exchange *x, uint64_t now)
{
    uint64_t waiting = unready(x), quiet = silent(x, waiting, 0);
    int over = now >= x->closing_ns;
    if (!x->promised) {
        if (over || !silent(x, waiting, 1))
            fail(x, x->doubt, quiet ? quiet : waiting | tb_bit(x->ring->position), x->closing_timeout_ns);
        return 0;
    }
    /* All have it, and somebody does not read what is to be said. */
    if (!waiting && over)
        atomic_store(&x->ring->over, 1);
    if (!waiting)
        return over ? TB_COMMITTED : 0;
    /* Unless nobody is left who could say ABORT. */
    if (!over && (waiting & ~gone(x)))
        return 0;
    if (x->doubt == TB_MISSING)
        x->positions = quiet ? quiet : waiting;
    else
        x->positions = x->closing_positions;
    x->timeout_ns = x->closing_timeout_ns;
    return TB_UNDECIDED;
}

void tb_lost(tb_exchange *x, int position)
{
    tb_peer *peer = &x->ring->peers[position];
    peer->gone = 1;
    peer->out_word = peer->out_from = peer->out_to = 0;
    for (int number = 0; number < peer->count; number++)
        peer->lanes[number].writable = 0;
    /* Who has said READY has nothing more to say; who waits for it elsewhere hears of this too. */
    if (peer->ready && x->promised)
        return;
    if (x->promised)
        close_down(x, TB_OVER, 0, 0, tb_now_ns());
    else if (!x->wanted)
        fail(x, TB_OVER, 0, 0);
}

void tb_left_behind(tb_exchange *x, int position)
{
    /* What is wanted comes from others. */
    if (!x->ring->peers[position].ready && !x->wanted)
        fail(x, TB_MISSING, tb_bit(x->ring->position), x->task->timeout_ns);
}

void tb_rubbish(tb_exchange *x)
{
    atomic_store(&x->ring->over, 1);
    if (x->promised) {
        close_down(x, TB_OVER, 0, 0, tb_now_ns());
        x->closing_ns = 1;
    } else if (!x->verdict) {
        fail(x, TB_OVER, 0, 0);
        x->verdict = TB_BROKEN;
    }
}

/* What others say. */

static void hear_meet(tb_exchange *x, tb_peer *peer, const tb_head *head)
{
    const tb_task *task = x->task;
    if (peer->met || head->first > head->bytes || head->first > TB_CLAIM_BYTES ||
        head->bytes - head->first > x->ring->short_bytes) {
        tb_rubbish(x);
        return;
    }
    peer->met = 1;
    peer->claim_bytes = head->first;
    peer->row_bytes = head->bytes - head->first;
    if (peer->claim_bytes != task->claim_bytes || memcmp(peer->meet, task->claim, task->claim_bytes))
        x->mismatched |= 2;
}

static void hear_abort(tb_exchange *x, const tb_head *head)
{
    uint64_t positions = head->first & (tb_others(x->ring) | tb_bit(x->ring->position));
    if (head->code == TB_MISMATCH && (positions & ~met(x) & ~tb_bit(x->ring->position)))
        x->wanted |= positions;
    else if (head->code >= TB_MISSING && head->code <= TB_OVER)
        fail(x, head->code, positions, head->second);
    else
        tb_rubbish(x);
}

/* Who has given up may have said so to another position first, which passes it on as it heard it. */
static void hear_hurry(tb_exchange *x, int from, const tb_head *head)
{
    uint64_t positions = head->first & (tb_others(x->ring) | tb_bit(x->ring->position));
    if (head->code != TB_INTERRUPTED)
        close_down(x, TB_MISSING, 0, head->second, tb_now_ns());
    else if (x->promised)
        close_down(x, TB_INTERRUPTED, positions ? positions : tb_bit(from), 0, tb_now_ns());
    else
        fail(x, TB_INTERRUPTED, positions ? positions : tb_bit(from), 0);
}

void tb_word_came(tb_exchange *x, tb_lane *lane)
{
    tb_peer *peer = &x->ring->peers[lane->peer];
    const tb_head *head = &lane->head;
    switch (head->kind) {
    case TB_MEET:
        hear_meet(x, peer, head);
        break;
    case TB_READY:
        peer->ready = 1;
        break;
    case TB_HURRY:
        peer->hurried = 1;
        hear_hurry(x, lane->peer, head);
        break;
    default:
        hear_abort(x, head);
    }
    x->stirred = 1;
}

/* The phases. */

static int rows_are_as_claimed(const tb_exchange *x)
{
    int own = x->ring->position;
    for (int position = 0; position < x->ring->positions; position++)
        if (position != own && x->ring->peers[position].row_bytes != tb_row(x, position, own).bytes)
            return 0;
    return 1;
}

static void gather(tb_exchange *x)
{
    uint64_t here = met(x), missing = (tb_others(x->ring) | tb_bit(x->ring->position)) & ~here;
    if (x->wanted && !(x->wanted & ~here)) {
        fail(x, TB_MISMATCH, x->wanted, 0);
    } else if ((x->mismatched || x->task->impossible) && !missing) {
        fail(x, TB_MISMATCH, here, 0);
    } else if (!missing) {
        x->gathering = 0;
        x->stirred = 1;
        if (!rows_are_as_claimed(x))
            tb_rubbish(x);
    } else if ((x->mismatched == 2 || x->wanted || x->task->impossible) && !(x->mismatched & 1)) {
        /* Others come soon, or are not waited for. */
        x->mismatched |= 1;
        uint64_t soon = tb_now_ns() + TB_MOMENT_NS;
        x->deadline_ns = soon < x->deadline_ns ? soon : x->deadline_ns;
    }
}

static int is_committed(const tb_exchange *x)
{
    if (unready(x) || !tb_all_sent(x))
        return 0;
    for (int position = 0; position < x->ring->positions; position++)
        if (x->ring->peers[position].out_to && !x->ring->peers[position].gone)
            return 0;
    return 1;
}

/* What is to be done next, of what has come. */
static int advance(tb_exchange *x)
{
    if (x->gathering && !x->verdict)
        gather(x);
    if (!x->gathering && !x->promised && !x->verdict && tb_all_here(x)) {
        /* What was given up before the last one came has not ended well, even if that is heard of only now. */
        if (atomic_load(&x->task->cancelled)) {
            fail(x, TB_INTERRUPTED, tb_bit(x->ring->position), 0);
            return x->verdict;
        }
        x->promised = 1;
        tb_say_all(x, TB_READY, 0, 0, 0);
    }
    if (x->verdict)
        return x->verdict;
    if (x->promised && is_committed(x))
        return TB_COMMITTED;
    return x->closing_ns ? resolve(x, tb_now_ns()) : 0;
}

/* For whom this position waits. */
static uint64_t waited_for(const tb_exchange *x)
{
    uint64_t all = tb_others(x->ring) | tb_bit(x->ring->position), awaited = x->gathering ? all & ~met(x) : tb_awaited(x);
    return awaited || x->gathering ? awaited : unready(x);
}

/* What may have happened besides. */
static int look(tb_exchange *x, uint64_t now)
{
    tb_task *task = x->task;
    if (atomic_load(&x->ring->over)) {
        if (x->promised) {
            x->doubt = TB_OVER;
            return TB_UNDECIDED;
        }
        fail(x, TB_OVER, 0, 0);
    }
    if (atomic_load(&task->cancelled) && !x->verdict)
        give_up(x, now);
    int pulse = now >= x->pulse_ns;
    x->pulse_ns = pulse ? now + SLICE_NS : x->pulse_ns;
    if (pulse)
        tb_link_log_see(&x->ring->log, x, waited_for(x));
    if (pulse && task->interrupt && !x->verdict && task->interrupt()) {
        /* Python keeps the exception; there is nothing more to ask. */
        task->interrupt = NULL;
        give_up(x, now);
    }
    if (now >= x->deadline_ns && !x->verdict && !x->closing_ns && !x->late) {
        /* Who was stopped meanwhile reads first what the others have said of that. */
        x->late = x->stirred = 1;
        tb_watch(x->ring, 0);
    } else if (now >= x->deadline_ns && !x->verdict && !x->closing_ns) {
        if (x->gathering && (x->mismatched || x->wanted || task->impossible))
            fail(x, TB_MISMATCH, met(x), 0);
        else if (x->gathering)
            fail(x, TB_MISSING, ~met(x) & tb_others(x->ring), task->timeout_ns);
        else
            close_down(x, TB_MISSING, 0, task->timeout_ns, now);
    }
    return x->verdict;
}

static void begin(tb_exchange *x)
{
    const tb_task *task = x->task;
    tb_ring *ring = x->ring;
    for (tb_lane *lane = ring->lanes; lane < ring->lanes + ring->lane_count; lane++)
        lane->fate = TB_UNJUDGED;
    for (int position = 0; position < ring->positions; position++) {
        tb_peer *peer = &ring->peers[position];
        peer->met = peer->ready = peer->hurried = peer->heard = 0;
        if (position == ring->position)
            continue;
        tb_forget_words(peer);
        tb_stretch row = tb_row(x, ring->position, position);
        const unsigned char *data = task->source ? (const unsigned char *)task->source + row.start : NULL;
        size_t bytes = data ? row.bytes : 0;
        tb_head head = {TB_LINK_MAGIC, TB_MEET, 0, task->claim_bytes + bytes, 0, x->sequence, task->claim_bytes, 0};
        tb_say(x, position, head, task->claim, data, bytes);
    }
}

static int pass(tb_exchange *x)
{
    int moved = x->stirred;
    x->stirred = 0;
    for (tb_lane *lane = x->ring->lanes; lane < x->ring->lanes + x->ring->lane_count; lane++) {
        moved |= tb_receive(x, lane);
        moved |= tb_send(x, lane);
    }
    return moved;
}

static uint64_t patience(const tb_exchange *x, uint64_t now)
{
    uint64_t end = x->closing_ns ? x->closing_ns : x->deadline_ns, slice = SLICE_NS;
    return end <= now ? SLICE_NS / 50 : end - now < slice ? end - now : slice;
}

static int carry_on(tb_exchange *x)
{
    for (int ended = 0, moved;;) {
        moved = pass(x);
        uint64_t now = x->now_ns = tb_now_ns();
        int pauses = !moved || now >= x->pulse_ns || atomic_load_explicit(&x->task->cancelled, memory_order_relaxed);
        if ((ended = advance(x)) || (pauses && (ended = look(x, now))))
            return ended;
        if (moved || x->stirred)
            continue;
        /* Of long arrays the processors have enough to do. */
        if (x->task->bytes <= SHORT_BYTES)
            tb_wait(x->ring, now, patience(x, now));
        else
            tb_watch(x->ring, patience(x, now));
    }
}

/* The end. */

static void keep_claims(tb_exchange *x)
{
    tb_record *record = &x->ring->records[x->sequence % TB_LINK_RECORDS];
    for (int position = 0; position < x->ring->positions; position++) {
        const tb_peer *peer = &x->ring->peers[position];
        int own = position == x->ring->position;
        tb_claim *claim = &record->claims[position];
        claim->bytes = own ? x->task->claim_bytes : peer->met ? peer->claim_bytes : 0;
        memcpy(claim->data, own ? x->task->claim : peer->meet, claim->bytes);
    }
    x->task->record = record;
}

static void finish(tb_exchange *x)
{
    if (x->is_short)
        tb_finish_meeting(x);
    else
        tb_finish_steps(x);
}

/* The arrays are the caller's again. */
static int end(tb_exchange *x, int status)
{
    tb_task *task = x->task;
    tb_ring *ring = x->ring;
    for (tb_lane *lane = ring->lanes; lane < ring->lanes + ring->lane_count; lane++)
        lane->out_body = NULL;
    task->positions = x->positions;
    task->failed_timeout_ns = x->timeout_ns;
    task->doubt = x->doubt;
    tb_link_log_end(&ring->log, task, x->sequence, status, x->now_ns);
    if (status == TB_COMMITTED) {
        finish(x);
        atomic_store(&ring->committed, x->sequence);
    } else if (status == TB_UNDECIDED) {
        atomic_store(&ring->over, 1);
        tb_hold_back(x);
    } else {
        tb_take_back(x);
        if (status == TB_MISMATCH)
            keep_claims(x);
    }
    tb_send_leftover(ring);
    if (gone(x))
        atomic_store(&ring->over, 1);
    if (atomic_load(&ring->over))
        tb_shut(ring);
    if (status != TB_UNDECIDED) {
        tb_undo_trim(&ring->undo);
        tb_undo_trim(&ring->spare);
    }
    return status;
}

int tb_ring_carry_out(void *of, tb_task *task)
{
    tb_ring *ring = of;
    tb_exchange *x = &ring->exchange;
    task->sequence = ++ring->sequence;
    if (atomic_load(&ring->over) || tb_turns_forked(&ring->turns))
        return TB_OVER;
    *x = (tb_exchange){.ring = ring, .task = task, .sequence = task->sequence, .gathering = 1};
    x->deadline_ns = task->deadline_ns;
    x->pulse_ns = task->deadline_ns - task->timeout_ns + SLICE_NS;
    tb_link_log_begin(&ring->log, task, x->sequence);
    int planned = tb_plan_steps(x);
    begin(x);
    if (!planned || atomic_load(&task->cancelled))
        fail(x, TB_INTERRUPTED, tb_bit(ring->position), 0);
    int status = carry_on(x);
    return end(x, planned ? status : TB_NO_MEMORY);
}

int tb_ring_settle(tb_ring *ring, tb_task *task, int committed)
{
    pthread_mutex_lock(&ring->turns.lock);
    tb_exchange *x = &ring->exchange;
    if (atomic_load(&task->status) == TB_UNDECIDED && x->task == task) {
        if (committed) {
            unsigned before = tb_round_as_usual();
            if (!x->is_short)
                tb_take_back(x);
            finish(x);
            tb_round_as_before(before);
            atomic_store(&ring->committed, x->sequence);
        }
        atomic_store(&task->status, committed ? TB_COMMITTED : task->doubt);
        tb_link_log_settle(&ring->log, x->sequence, committed ? TB_COMMITTED : task->doubt);
    }
    pthread_mutex_unlock(&ring->turns.lock);
    return atomic_load(&task->status);
}
