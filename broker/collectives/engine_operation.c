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
#include "engine_verdict.h"

#include <string.h>

enum {
    STAGES_PAST_CACHES_BYTES_MIN = 2 << 20,  /* More than the others read while it is still in a cache that they share. */
    RESULT_PAST_CACHES_BYTES_MIN = 16 << 20, /* Less may still be in the caches when the program reads it. */
};

static int begin(tb_operation *operation)
{
    tb_task *task = operation->task;
    uint64_t word = atomic_load(tb_verdict_of(operation));
    if (tb_is_decided(operation, word))
        return tb_is_committed(operation, word) ? TB_BROKEN : tb_obey(operation, word);
    if (atomic_load(&operation->engine->board->state) != TB_OPEN)
        return tb_decide(operation, TB_OVER, 0);
    if (atomic_load(&task->cancelled))
        return tb_decide(operation, TB_INTERRUPTED, 1ull << operation->engine->position);
    if (operation->sequence > TB_ROWS) {
        int ended = tb_wait_for_all(operation, TB_LEFT, operation->sequence - TB_ROWS);
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
    int ended = tb_wait_for_all(operation, TB_ARRIVED, operation->sequence);
    if (ended)
        return ended;
    operation->gathering = 0;
    uint64_t word = atomic_load(tb_verdict_of(operation));
    if (tb_is_decided(operation, word) && !tb_is_committed(operation, word))
        return tb_obey(operation, word);
    if (operation->task->impossible || tb_claims_differ(operation))
        return tb_decide(operation, TB_MISMATCH, tb_all_positions(operation));
    return 0;
}

static int fail_without_memory(tb_operation *operation)
{
    int ended = tb_decide(operation, TB_INTERRUPTED, 1ull << operation->engine->position);
    return ended == TB_INTERRUPTED ? TB_NO_MEMORY : ended;
}

static int stage(tb_operation *operation, size_t chunk)
{
    int ended = 0;
    if (chunk >= operation->places)
        ended = tb_wait_for_all(operation, TB_COLLECTED, tb_mark(operation, chunk - operation->places + 1));
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
        int ended = tb_wait_for_all(operation, TB_STAGED, tb_mark(operation, chunk + 1));
        if (ended)
            return ended;
        tb_reduce_chunk(operation, chunk);
    }
    tb_publish(operation->own, TB_REDUCED, tb_mark(operation, chunk + 1));
    return 0;
}

static int collect(tb_operation *operation, size_t chunk)
{
    int ended = tb_wait_for_all(operation, TB_REDUCED, tb_mark(operation, chunk + 1));
    if (ended)
        return ended;
    operation->touched = chunk + 1;
    tb_collect(operation, chunk);
    tb_publish(operation->own, TB_COLLECTED, tb_mark(operation, chunk + 1));
    return 0;
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
    int ended = tb_wait_for_all(operation, TB_REDUCED, tb_mark(operation, operation->chunks));
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
    int ended = tb_wait_for_all(operation, TB_LEFT, operation->sequence - 1);
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
    operation.pulse_ns = task->deadline_ns - task->timeout_ns + TB_SLICE_NS;
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
