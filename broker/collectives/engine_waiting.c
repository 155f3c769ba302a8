/* How a position waits for others, and what it looks at meanwhile: the verdict, the clock, the program's signals. */
#define _GNU_SOURCE
#include "engine_verdict.h"

#include <sched.h>
#include <string.h>
#include <time.h>

enum {
    GRACE_NS = 250000000,      /* For the claims of others once some differ; as limits.MISMATCH_GRACE_NS. */
    BROKEN_NS = 1000000000,    /* In a committed operation nobody is waited for; so long after its deadline it is none. */
    SPIN_TURNS = 50,
    SPIN_STEP_NS = 2000,
    SPIN_MAX_NS = 50000,
    PATIENCE_MIN_NS = 2 * SPIN_MAX_NS, /* More than any other spin, so that it is tried again. */
    SPIN_BYTES_A_NS = 32, /* For long arrays an eighth of the time that they take: to lose the processor costs more. */
    YIELD_NS = 20000,
    SWITCH_NS = 1500, /* A yield to nobody takes less. */
    COMPUTING_NS = 500000, /* A yield to another engine takes less. */
    SLEEP_WAITS_MIN = 32,
    SLEEP_WAITS_MAX = 4096,
};

/* What the kernel makes of it is some 130 us, more than a moment: who wakes up goes before one that has run for longer. */
static const struct timespec NAP = {.tv_nsec = 80000};

static uint64_t behind(const tb_operation *operation, tb_counter counter, uint64_t value)
{
    uint64_t positions = 0;
    for (int position = 0; position < operation->engine->positions; position++)
        if (atomic_load(tb_counter_of(tb_slot_of(operation->engine->board, position), counter)) < value)
            positions |= 1ull << position;
    return positions;
}

uint64_t tb_all_positions(const tb_operation *operation)
{
    return ~0ull >> (TB_POSITIONS_MAX - operation->engine->positions);
}

int tb_claims_differ(const tb_operation *operation)
{
    const tb_task *task = operation->task;
    for (int position = 0; position < operation->engine->positions; position++) {
        tb_slot *slot = tb_slot_of(operation->engine->board, position);
        const tb_claim *claim = &slot->rows[operation->sequence % TB_ROWS].claim;
        if (atomic_load_explicit(&slot->arrived, memory_order_acquire) == operation->sequence &&
            (slot->calls[operation->sequence % TB_ROWS] != task->call || claim->bytes != task->claim_bytes ||
             memcmp(claim->data, task->claim, task->claim_bytes)))
            return 1;
    }
    return 0;
}

/* What may have happened besides what is waited for; not 0 ends the operation. */
static int look(tb_operation *operation, tb_counter counter, uint64_t value)
{
    tb_engine *engine = operation->engine;
    uint64_t word = atomic_load(tb_verdict_of(operation)), now = tb_now_ns();
    int state = atomic_load(&engine->board->state), ended = 0;
    if (tb_is_decided(operation, word)) {
        if (!tb_is_committed(operation, word))
            return tb_obey(operation, word);
        return now > operation->deadline_ns + BROKEN_NS && behind(operation, counter, value) ? TB_BROKEN : 0;
    }
    if (state == TB_GONE ||
        (state == TB_DRAINING && operation->gathering && behind(operation, TB_ARRIVED, operation->sequence)))
        return tb_decide(operation, TB_OVER, 0);
    if (operation->gathering && counter == TB_ARRIVED && !operation->mismatched &&
        (operation->task->impossible || tb_claims_differ(operation))) {
        operation->mismatched = 1;
        if (now + GRACE_NS < operation->deadline_ns)
            operation->deadline_ns = now + GRACE_NS;
    }
    if (atomic_load(&operation->task->cancelled))
        return tb_decide(operation, TB_INTERRUPTED, 1ull << engine->position);
    if (operation->task->interrupt && now >= operation->pulse_ns) {
        operation->pulse_ns = now + TB_SLICE_NS;
        if (operation->task->interrupt())
            return tb_decide(operation, TB_INTERRUPTED, 1ull << engine->position);
    }
    if (now >= operation->deadline_ns) {
        uint64_t missing = behind(operation, counter, value);
        if (operation->mismatched)
            ended = tb_decide(operation, TB_MISMATCH, tb_all_positions(operation) & ~missing);
        else if (missing)
            ended = tb_decide(operation, TB_MISSING, missing);
    }
    return ended;
}

static int has_changed(void *of)
{
    tb_operation *operation = of;
    uint64_t word = atomic_load(tb_verdict_of(operation));
    return (tb_is_decided(operation, word) && !tb_is_committed(operation, word)) ||
           (!tb_is_decided(operation, word) && atomic_load(&operation->task->cancelled)) ||
           atomic_load(&operation->engine->board->state) > (operation->gathering ? TB_OPEN : TB_DRAINING);
}

int tb_glance(tb_operation *operation, tb_counter counter, uint64_t value)
{
    return has_changed(operation) || tb_now_ns() >= operation->pulse_ns ? look(operation, counter, value) : 0;
}

static inline void pause_a_moment(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static int spins(uint64_t spin_ns, _Atomic uint64_t *counter, uint64_t value)
{
    uint64_t end = tb_now_ns() + spin_ns;
    do
        for (int turn = 0; turn < SPIN_TURNS; turn++) {
            pause_a_moment();
            if (atomic_load_explicit(counter, memory_order_acquire) >= value)
                return 1;
        }
    while (tb_now_ns() < end);
    return 0;
}

static uint64_t least(uint64_t one, uint64_t other) { return one < other ? one : other; }

/* How long to spin the next time. */
static void learn(tb_engine *engine, int patient, int paid)
{
    if (patient)
        engine->patience_ns = paid ? least(2 * engine->patience_ns, TB_PATIENCE_MAX_NS)
                                   : engine->patience_ns / 2 + PATIENCE_MIN_NS / 2;
    else
        engine->spin_ns = paid ? least(engine->spin_ns + SPIN_STEP_NS, SPIN_MAX_NS) : engine->spin_ns / 2;
}

/* Waits in the ways that cost least when it is not for long; says whether that was enough. Who spins keeps its processor
   from others: from the one that it waits for, perhaps. That others wanted it shows when a yield takes long. When it takes
   very long, the other one computes and does not give the processor back: for a while only sleep helps, since who wakes up
   goes before who computes. Each time that this shows again the while is longer.

   In a long operation the others are a part of it behind, however short the usual wait is: what such a wait teaches is
   how patient to be in the next one, and nothing of others. */
static int wait_briefly(tb_operation *operation, _Atomic uint64_t *counter, uint64_t value)
{
    tb_engine *engine = operation->engine;
    if (engine->sleepy) {
        engine->sleepy--;
        return 0;
    }
    uint64_t long_ns = least(operation->task->bytes / SPIN_BYTES_A_NS, engine->patience_ns);
    int patient = long_ns > engine->spin_ns, wanted = 0, computing = 0;
    int came = !engine->crowded && spins(patient ? long_ns : engine->spin_ns, counter, value);
    uint64_t now = tb_now_ns(), end = now + YIELD_NS;
    while (!came && now < end) {
        sched_yield();
        uint64_t before = now;
        now = tb_now_ns();
        wanted |= now - before > SWITCH_NS;
        computing |= now - before > COMPUTING_NS;
        came = atomic_load_explicit(counter, memory_order_acquire) >= value;
    }
    if (computing) {
        engine->sleepy = engine->sleep_waits;
        engine->sleep_waits = 4 * engine->sleep_waits < SLEEP_WAITS_MAX ? 4 * engine->sleep_waits : SLEEP_WAITS_MAX;
    } else
        engine->sleep_waits = SLEEP_WAITS_MIN;
    learn(engine, patient, came && !wanted);
    return came;
}

int tb_wait_for(tb_operation *operation, int position, tb_counter counter, uint64_t value)
{
    tb_slot *slot = tb_slot_of(operation->engine->board, position);
    _Atomic uint64_t *own = tb_counter_of(slot, counter);
    if (atomic_load_explicit(own, memory_order_acquire) >= value)
        return 0;
    if (!operation->naps && wait_briefly(operation, own, value))
        return 0;
    while (atomic_load_explicit(own, memory_order_acquire) < value) {
        int ended = look(operation, counter, value);
        if (ended)
            return ended;
        uint64_t now = tb_now_ns(), timeout_ns = TB_SLICE_NS;
        if (operation->deadline_ns < now + timeout_ns)
            timeout_ns = operation->deadline_ns > now ? operation->deadline_ns - now : TB_SLICE_NS / 50;
        if (operation->naps) {
            operation->naps--;
            nanosleep(&NAP, NULL);
        } else
            tb_park(slot, counter, value, timeout_ns, has_changed, operation);
    }
    return 0;
}

int tb_wait_for_all(tb_operation *operation, tb_counter counter, uint64_t value)
{
    int ended = 0;
    for (int position = 0; position < operation->engine->positions && !ended; position++)
        if (position != operation->engine->position)
            ended = tb_wait_for(operation, position, counter, value);
    return ended;
}
