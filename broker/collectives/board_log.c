/* What positions leave on the board for the broker, and how it reads that: it shows people who has come and who has not
   (broker/collectives/watching.py). No member waits for any of this. */
#include "board.h"

#include <string.h>

void tb_log_begin(tb_slot *own, uint64_t sequence, uint64_t began_ns, const void *claim, uint32_t claim_bytes)
{
    tb_entry *entry = &own->log.entries[sequence % TB_LOG_ENTRIES];
    atomic_store_explicit(&entry->sequence, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    entry->began_ns = began_ns;
    entry->left_ns = 0;
    entry->claim_bytes = claim_bytes;
    if (claim_bytes <= TB_LOG_CLAIM_BYTES)
        memcpy(entry->claim, claim, claim_bytes);
    atomic_store_explicit(&entry->sequence, sequence, memory_order_release);
    atomic_store_explicit(&own->log.begun, sequence, memory_order_release);
}

void tb_log_end(tb_slot *own, uint64_t sequence)
{
    own->log.entries[sequence % TB_LOG_ENTRIES].left_ns = tb_now_ns();
}

static tb_slot *slot_of(const void *memory, int position)
{
    return tb_slot_of((tb_board *)memory, position);
}

static uint64_t load(_Atomic uint64_t *word)
{
    return atomic_load_explicit(word, memory_order_acquire);
}

void tb_read_standing(const void *memory, int position, tb_standing *standing)
{
    tb_slot *slot = slot_of(memory, position);
    /* What comes last in an operation is read first: who has left has arrived. */
    standing->left = load(&slot->left);
    standing->collected = load(&slot->collected);
    standing->reduced = load(&slot->reduced);
    standing->staged = load(&slot->staged);
    standing->arrived = load(&slot->arrived);
    standing->begun = load(&slot->log.begun);
}

int tb_read_entry(const void *memory, int position, uint64_t sequence, tb_entry *entry)
{
    tb_entry *there = &slot_of(memory, position)->log.entries[sequence % TB_LOG_ENTRIES];
    if (!sequence || load(&there->sequence) != sequence)
        return 0;
    entry->began_ns = there->began_ns;
    entry->left_ns = there->left_ns;
    entry->claim_bytes = there->claim_bytes;
    memcpy(entry->claim, there->claim, TB_LOG_CLAIM_BYTES);
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&there->sequence, memory_order_relaxed) == sequence;
}

uint64_t tb_read_verdict(const void *memory, uint64_t sequence)
{
    return load(&((tb_board *)memory)->verdicts[sequence % TB_VERDICTS].word);
}

const tb_record *tb_read_record(const void *memory, int author, uint64_t sequence)
{
    tb_record *record = &slot_of(memory, author)->records[sequence % TB_RECORDS];
    return load(&record->sequence) == sequence ? record : NULL;
}
