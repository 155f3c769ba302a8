/* Who writes a verdict, and what it means. */
#include "engine_verdict.h"

static uint64_t word_of(uint64_t sequence, int author, int code)
{
    return sequence << (TB_CODE_BITS + TB_AUTHOR_BITS) | (uint64_t)author << TB_CODE_BITS | code;
}

int tb_obey(tb_operation *operation, uint64_t word)
{
    tb_task *task = operation->task;
    int code = word & 0xff, author = word >> TB_CODE_BITS & 0xff;
    if (tb_is_committed(operation, word))
        return 0;
    if (code < TB_MISSING || code > TB_OVER || author >= operation->engine->positions)
        return TB_BROKEN;
    /* The verdict of a later operation says that this one has failed long ago: its words have to do. */
    uint64_t sequence = word >> (TB_CODE_BITS + TB_AUTHOR_BITS);
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
    _Atomic uint64_t *verdict = tb_verdict_of(operation);
    uint64_t ours = word_of(operation->sequence, engine->position, code), word = atomic_load(verdict);
    while (!tb_is_decided(operation, word))
        if (atomic_compare_exchange_weak(verdict, &word, ours)) {
            if (code != TB_COMMITTED)
                tb_ring_all(engine->board, engine->positions);
            word = ours;
        }
    return word;
}

int tb_decide(tb_operation *operation, int code, uint64_t positions)
{
    if (code != TB_COMMITTED) {
        tb_record *record = &operation->own->records[operation->sequence % TB_RECORDS];
        record->positions = positions;
        record->timeout_ns = operation->task->timeout_ns;
        if (code == TB_MISMATCH)
            copy_claims(operation, record);
        atomic_store(&record->sequence, operation->sequence);
    }
    return tb_obey(operation, write_verdict(operation, code));
}

/* On any thread. Either this sees that the operation has begun, or the operation sees that it is cancelled. */
void tb_cancel(void *of, tb_task *task)
{
    tb_operation operation = {.engine = of, .task = task, .sequence = atomic_load(&task->sequence)};
    if (operation.sequence && atomic_load(&task->status) == TB_PENDING)
        write_verdict(&operation, TB_INTERRUPTED);
}

int tb_commit(tb_operation *operation)
{
    uint64_t word = atomic_load_explicit(tb_verdict_of(operation), memory_order_acquire);
    return tb_is_committed(operation, word) ? 0 : tb_decide(operation, TB_COMMITTED, 0);
}
