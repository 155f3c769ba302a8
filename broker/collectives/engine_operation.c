/* How an operation goes, seen from one position:

     begin     wait until the row may be written; write claim and small payload, `arrived`
     gather    wait until all have arrived; compare the claims
     small     commit; reduce or copy out of everybody's row
     held      an array that fits into the stages: stage all; gather; reduce the own parts; commit when all is reduced;
               collect all, so that there is no copy to go back to
     in turn   one that is longer: stage chunk k | reduce chunk k - 1 | collect chunk k - 2, each when the others are so
               far; commit when all is reduced
     direct    in place of that, where all arrays lie in memory that all map: reduce what nobody has claimed yet; commit
               when all that was claimed is reduced (engine_direct.c)
     end       `left`; after a failure the array is as it was */
#define _GNU_SOURCE
#include "engine_operation.h"

#include <sched.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    CODE_BITS = 8,
    AUTHOR_BITS = 8,
    SLICE_NS = 50000000,       /* Python looks at its signals at least as often as twice this. */
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
    STAGES_PAST_CACHES_BYTES_MIN = 2 << 20,  /* More than the others read while it is still in a cache that they share. */
    RESULT_PAST_CACHES_BYTES_MIN = 16 << 20, /* Less may still be in the caches when the program reads it. */
};

/* What the kernel makes of it is some 130 us, more than a moment: who wakes up goes before one that has run for longer. */
static const struct timespec NAP = {.tv_nsec = 80000};

/* The verdict. */

static _Atomic uint64_t *verdict_of(const tb_operation *operation)
{
    return &operation->engine->board->verdicts[operation->sequence % TB_VERDICTS].word;
}

static uint64_t word_of(uint64_t sequence, int author, int code)
{
    return sequence << (CODE_BITS + AUTHOR_BITS) | (uint64_t)author << CODE_BITS | code;
}

static int is_decided(const tb_operation *operation, uint64_t word)
{
    return word >> (CODE_BITS + AUTHOR_BITS) >= operation->sequence;
}

static int is_committed(const tb_operation *operation, uint64_t word)
{
    return word >> (CODE_BITS + AUTHOR_BITS) == operation->sequence && (word & 0xff) == TB_COMMITTED;
}

/* What a verdict means for this position: 0 when the operation goes on to its end, else how it has failed. */
static int obey(tb_operation *operation, uint64_t word)
{
    tb_task *task = operation->task;
    int code = word & 0xff, author = word >> CODE_BITS & 0xff;
    if (is_committed(operation, word))
        return 0;
    if (code < TB_MISSING || code > TB_OVER || author >= operation->engine->positions)
        return TB_BROKEN;
    /* The verdict of a later operation says that this one has failed long ago: its words have to do. */
    uint64_t sequence = word >> (CODE_BITS + AUTHOR_BITS);
    const tb_record *record = &tb_slot_of(operation->engine->board, author)->records[sequence % TB_RECORDS];
    task->positions = code == TB_INTERRUPTED ? 1ull << author : record->positions;
    task->failed_timeout_ns = record->timeout_ns;
    task->record = record;
    return code;
}

static void copy_claims(const tb_operation *operation, tb_record *record)
{
    for (int position = 0; position < operation->engine->positions; position++)
        if (record->positions >> position & 1)
            record->claims[position] =
                tb_slot_of(operation->engine->board, position)->rows[operation->sequence % TB_ROWS].claim;
}

/* Writes a verdict, unless there is one; returns the one that counts. */
static uint64_t write_verdict(const tb_operation *operation, int code)
{
    tb_engine *engine = operation->engine;
    if (code != TB_COMMITTED)
        tb_settle_turn(engine, operation->sequence, operation->task->call);
    _Atomic uint64_t *verdict = verdict_of(operation);
    uint64_t ours = word_of(operation->sequence, engine->position, code), word = atomic_load(verdict);
    while (!is_decided(operation, word))
        if (atomic_compare_exchange_weak(verdict, &word, ours)) {
            if (code != TB_COMMITTED)
                tb_ring_all(engine->board, engine->positions);
            word = ours;
        }
    return word;
}

/* Gives the verdict, unless there is one; then obeys it. */
static int decide(tb_operation *operation, int code, uint64_t positions)
{
    if (code != TB_COMMITTED) {
        tb_record *record = &operation->own->records[operation->sequence % TB_RECORDS];
        record->positions = positions;
        record->timeout_ns = operation->task->timeout_ns;
        if (code == TB_MISMATCH)
            copy_claims(operation, record);
        atomic_store(&record->sequence, operation->sequence);
    }
    return obey(operation, write_verdict(operation, code));
}

/* On any thread. Either this sees that the operation has begun, or the operation sees that it is cancelled. */
void tb_cancel(void *of, tb_task *task)
{
    tb_operation operation = {.engine = of, .task = task, .sequence = atomic_load(&task->sequence)};
    if (operation.sequence && atomic_load(&task->status) == TB_PENDING)
        write_verdict(&operation, TB_INTERRUPTED);
}

/* Waiting. */

static uint64_t behind(const tb_operation *operation, tb_counter counter, uint64_t value)
{
    uint64_t positions = 0;
    for (int position = 0; position < operation->engine->positions; position++)
        if (atomic_load(tb_counter_of(tb_slot_of(operation->engine->board, position), counter)) < value)
            positions |= 1ull << position;
    return positions;
}

static uint64_t all_positions(const tb_operation *operation)
{
    return ~0ull >> (TB_POSITIONS_MAX - operation->engine->positions);
}

static int claims_differ(const tb_operation *operation)
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
    uint64_t word = atomic_load(verdict_of(operation)), now = tb_now_ns();
    int state = atomic_load(&engine->board->state), ended = 0;
    if (is_decided(operation, word)) {
        if (!is_committed(operation, word))
            return obey(operation, word);
        return now > operation->deadline_ns + BROKEN_NS && behind(operation, counter, value) ? TB_BROKEN : 0;
    }
    if (state == TB_GONE ||
        (state == TB_DRAINING && operation->gathering && behind(operation, TB_ARRIVED, operation->sequence)))
        return decide(operation, TB_OVER, 0);
    if (operation->gathering && counter == TB_ARRIVED && !operation->mismatched &&
        (operation->task->impossible || claims_differ(operation))) {
        operation->mismatched = 1;
        if (now + GRACE_NS < operation->deadline_ns)
            operation->deadline_ns = now + GRACE_NS;
    }
    if (atomic_load(&operation->task->cancelled))
        return decide(operation, TB_INTERRUPTED, 1ull << engine->position);
    if (operation->task->interrupt && now >= operation->pulse_ns) {
        operation->pulse_ns = now + SLICE_NS;
        if (operation->task->interrupt())
            return decide(operation, TB_INTERRUPTED, 1ull << engine->position);
    }
    if (now >= operation->deadline_ns) {
        uint64_t missing = behind(operation, counter, value);
        if (operation->mismatched)
            ended = decide(operation, TB_MISMATCH, all_positions(operation) & ~missing);
        else if (missing)
            ended = decide(operation, TB_MISSING, missing);
    }
    return ended;
}

static int has_changed(void *of)
{
    tb_operation *operation = of;
    uint64_t word = atomic_load(verdict_of(operation));
    return (is_decided(operation, word) && !is_committed(operation, word)) ||
           (!is_decided(operation, word) && atomic_load(&operation->task->cancelled)) ||
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
        uint64_t now = tb_now_ns(), timeout_ns = SLICE_NS;
        if (operation->deadline_ns < now + timeout_ns)
            timeout_ns = operation->deadline_ns > now ? operation->deadline_ns - now : SLICE_NS / 50;
        if (operation->naps) {
            operation->naps--;
            nanosleep(&NAP, NULL);
        } else
            tb_park(slot, counter, value, timeout_ns, has_changed, operation);
    }
    return 0;
}

static int wait_for_all(tb_operation *operation, tb_counter counter, uint64_t value)
{
    int ended = 0;
    for (int position = 0; position < operation->engine->positions && !ended; position++)
        if (position != operation->engine->position)
            ended = tb_wait_for(operation, position, counter, value);
    return ended;
}

/* The parts. */

static int begin(tb_operation *operation)
{
    tb_task *task = operation->task;
    uint64_t word = atomic_load(verdict_of(operation));
    if (is_decided(operation, word))
        return is_committed(operation, word) ? TB_BROKEN : obey(operation, word);
    if (atomic_load(&operation->engine->board->state) != TB_OPEN)
        return decide(operation, TB_OVER, 0);
    if (atomic_load(&task->cancelled))
        return decide(operation, TB_INTERRUPTED, 1ull << operation->engine->position);
    if (operation->sequence > TB_ROWS) {
        int ended = wait_for_all(operation, TB_LEFT, operation->sequence - TB_ROWS);
        if (ended)
            return ended;
    }
    tb_claim *claim = &operation->own->rows[operation->sequence % TB_ROWS].claim;
    operation->own->calls[operation->sequence % TB_ROWS] = task->call;
    claim->bytes = task->claim_bytes;
    memcpy(claim->data, task->claim, task->claim_bytes);
    operation->own->places[operation->sequence % TB_ROWS][0] = task->shared_source.place;
    operation->own->places[operation->sequence % TB_ROWS][1] = task->shared_target.place;
    if (task->bytes <= TB_INLINE_BYTES)
        tb_write_row(operation);
    tb_publish(operation->own, TB_ARRIVED, operation->sequence);
    return 0;
}

/* That all have arrived may mean that some are further: then this operation has failed, and their rows are not its. */
static int gather(tb_operation *operation)
{
    int ended = wait_for_all(operation, TB_ARRIVED, operation->sequence);
    if (ended)
        return ended;
    operation->gathering = 0;
    uint64_t word = atomic_load(verdict_of(operation));
    if (is_decided(operation, word) && !is_committed(operation, word))
        return obey(operation, word);
    if (operation->task->impossible || claims_differ(operation))
        return decide(operation, TB_MISMATCH, all_positions(operation));
    return 0;
}

static int fail_without_memory(tb_operation *operation)
{
    int ended = decide(operation, TB_INTERRUPTED, 1ull << operation->engine->position);
    return ended == TB_INTERRUPTED ? TB_NO_MEMORY : ended;
}

static int stage(tb_operation *operation, size_t chunk)
{
    int ended = 0;
    if (chunk >= operation->places)
        ended = wait_for_all(operation, TB_COLLECTED, tb_mark(operation, chunk - operation->places + 1));
    if (ended)
        return ended;
    if (!tb_reserve_stage(operation, chunk))
        return fail_without_memory(operation);
    tb_stage(operation, chunk);
    tb_publish(operation->own, TB_STAGED, tb_mark(operation, chunk + 1));
    return 0;
}

static int reduce(tb_operation *operation, size_t chunk)
{
    if (operation->task->kernel) {
        int ended = wait_for_all(operation, TB_STAGED, tb_mark(operation, chunk + 1));
        if (ended)
            return ended;
        tb_reduce_chunk(operation, chunk);
    }
    tb_publish(operation->own, TB_REDUCED, tb_mark(operation, chunk + 1));
    return 0;
}

static int collect(tb_operation *operation, size_t chunk)
{
    int ended = wait_for_all(operation, TB_REDUCED, tb_mark(operation, chunk + 1));
    if (ended)
        return ended;
    operation->touched = chunk + 1;
    tb_collect(operation, chunk);
    tb_publish(operation->own, TB_COLLECTED, tb_mark(operation, chunk + 1));
    return 0;
}

int tb_commit(tb_operation *operation)
{
    uint64_t word = atomic_load_explicit(verdict_of(operation), memory_order_acquire);
    return is_committed(operation, word) ? 0 : decide(operation, TB_COMMITTED, 0);
}

static int move_rows(tb_operation *operation)
{
    int ended = gather(operation);
    if (!ended)
        ended = tb_commit(operation);
    if (!ended)
        tb_finish_rows(operation);
    return ended;
}

static int commit_reduced(tb_operation *operation)
{
    int ended = wait_for_all(operation, TB_REDUCED, tb_mark(operation, operation->chunks));
    return ended ? ended : tb_commit(operation);
}

/* Each position passes over all of its array, then over its part of all, and when that is decided over the result. So it
   waits for the others three times and not for each chunk, and they may share processors. */
static int move_held(tb_operation *operation)
{
    size_t chunks = operation->chunks;
    int ended = 0;
    for (size_t chunk = 0; chunk < chunks && !ended; chunk++) {
        ended = stage(operation, chunk);
        if (!ended)
            ended = tb_glance(operation, TB_ARRIVED, operation->sequence);
    }
    if (!ended)
        ended = gather(operation);
    for (size_t chunk = 0; chunk < chunks && !ended; chunk++) {
        ended = reduce(operation, chunk);
        if (!ended)
            ended = tb_glance(operation, TB_REDUCED, tb_mark(operation, chunk));
    }
    if (!ended)
        ended = commit_reduced(operation);
    for (size_t chunk = 0; chunk < chunks && !ended; chunk++)
        tb_collect(operation, chunk);
    return ended;
}

/* Chunk after chunk, with few places: the array changes before the verdict, and is fetched back when that is none. */
static int move_in_turn(tb_operation *operation)
{
    size_t chunks = operation->chunks;
    int remembers = tb_changes_early(operation), ended = 0;
    for (size_t step = 0; step < chunks + 2 && !ended; step++) {
        if (step < chunks)
            ended = stage(operation, step);
        if (!ended && step < chunks && remembers)
            tb_remember(operation, step);
        if (!ended && !step)
            ended = gather(operation);
        if (!ended && step >= 1 && step <= chunks)
            ended = reduce(operation, step - 1);
        if (!ended && step >= 2)
            ended = collect(operation, step - 2);
        if (!ended && step)
            ended = tb_glance(operation, TB_REDUCED, tb_mark(operation, step <= chunks ? step - 1 : chunks));
    }
    if (!ended)
        ended = commit_reduced(operation);
    if (ended && remembers)
        tb_restore(operation);
    return ended;
}

/* The memory of a stage is free again when everybody has left what was in it. */
static int move_chunks(tb_operation *operation)
{
    int ended = wait_for_all(operation, TB_LEFT, operation->sequence - 1);
    if (ended)
        return ended;
    return operation->held ? move_held(operation) : move_in_turn(operation);
}

static int move_array(tb_operation *operation)
{
    if (operation->task->shared_source.place) {
        int ended = gather(operation);
        if (ended || tb_is_direct(operation))
            return ended ? ended : tb_move_direct(operation);
    }
    return move_chunks(operation);
}

int tb_carry_out(void *of, tb_task *task)
{
    tb_engine *engine = of;
    tb_operation operation = {
        .engine = engine,
        .task = task,
        .own = tb_slot_of(engine->board, engine->position),
        .sequence = ++engine->sequence,
        .deadline_ns = task->deadline_ns,
        .gathering = 1,
    };
    operation.pulse_ns = task->deadline_ns - task->timeout_ns + SLICE_NS;
    operation.chunks = tb_chunks(&operation);
    operation.held = operation.chunks <= engine->stage_bytes / TB_CHUNK_BYTES;
    operation.places = operation.held ? operation.chunks : TB_PLACES;
    operation.stages_past_caches = task->bytes >= STAGES_PAST_CACHES_BYTES_MIN;
    operation.result_past_caches = task->bytes >= RESULT_PAST_CACHES_BYTES_MIN;
    atomic_store(&task->sequence, operation.sequence);
    int small = task->bytes <= TB_INLINE_BYTES, ended = 0;
    /* Before the first wait, so that the broker sees also who waits for others to leave what has failed. */
    tb_log_begin(operation.own, operation.sequence, task->deadline_ns - task->timeout_ns, task->claim, task->claim_bytes);
    if (!small && tb_changes_early(&operation) && !tb_undo_reserve(&engine->undo, task->target_bytes))
        ended = fail_without_memory(&operation);
    if (!ended)
        ended = begin(&operation);
    if (!ended)
        ended = small ? move_rows(&operation) : move_array(&operation);
    if (!small)
        tb_log_end(operation.own, operation.sequence);
    tb_publish(operation.own, TB_LEFT, operation.sequence);
    tb_undo_trim(&engine->undo);
    return ended ? ended : TB_COMMITTED;
}
