/* What an engine of links keeps of its operations for another thread of its process, which tells the broker of them
   (clients/collectives/reporting.py): nobody in an operation waits for any of this, and it costs no look at a clock.

   The entry of the operation under way is always written. Which of them stay once they have ended, their numbers say: in
   a fast loop no more than a few of a report's interval can be told, and they have to be the same on all positions, or
   nobody could compare when each has come. Multiples of a golden section (Knuth, The Art of Computer Programming 3, 6.4)
   fall evenly, also on those numbers that have the same place in each step of a program; and whoever keeps fewer of
   them keeps some of those that others do. What has failed stays. */
#include "ring_engine_operation.h"

#include <string.h>

static int stays(const tb_link_log *log, uint64_t sequence)
{
    int thinning = atomic_load_explicit(&log->thinning, memory_order_relaxed);
    return !thinning || sequence * 0x9e3779b97f4a7c15ull >> (64 - thinning) == 0;
}

static tb_link_entry *present(tb_link_log *log) { return &log->entries[log->kept % TB_LINK_LOG_ENTRIES]; }

void tb_link_log_begin(tb_link_log *log, const tb_task *task, uint64_t sequence)
{
    tb_link_entry *entry = present(log);
    atomic_store_explicit(&entry->sequence, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&entry->status, TB_PENDING, memory_order_relaxed);
    entry->began_ns = task->deadline_ns - task->timeout_ns;
    entry->claim_bytes = task->claim_bytes;
    memcpy(entry->claim, task->claim, task->claim_bytes);
    atomic_store_explicit(&entry->sequence, sequence, memory_order_release);
    atomic_store_explicit(&log->begun, sequence, memory_order_release);
}

void tb_link_log_end(tb_link_log *log, const tb_task *task, uint64_t sequence, int status, uint64_t ended_ns)
{
    tb_link_entry *entry = present(log);
    entry->ended_ns = ended_ns;
    entry->positions = task->positions;
    entry->timeout_ns = task->failed_timeout_ns;
    atomic_store_explicit(&entry->status, status, memory_order_release);
    log->kept += status != TB_COMMITTED || stays(log, sequence);
}

void tb_link_log_settle(tb_link_log *log, uint64_t sequence, int status)
{
    for (tb_link_entry *entry = log->entries; entry < log->entries + TB_LINK_LOG_ENTRIES; entry++)
        if (atomic_load_explicit(&entry->sequence, memory_order_relaxed) == sequence)
            atomic_store_explicit(&entry->status, status, memory_order_release);
}

void tb_link_log_see(tb_link_log *log, const tb_exchange *x, uint64_t waits_for)
{
    int phase = x->gathering ? TB_GATHERING : x->promised ? TB_AGREEING : TB_MOVING;
    atomic_store_explicit(&log->phase, phase, memory_order_relaxed);
    atomic_store_explicit(&log->waits_for, waits_for, memory_order_relaxed);
    atomic_store_explicit(&log->received_bytes, x->received_bytes, memory_order_relaxed);
    atomic_store_explicit(&log->seen, x->sequence, memory_order_release);
}

/* For the other thread. */

void tb_link_log_thin(tb_link_log *log, int thinning)
{
    atomic_store_explicit(&log->thinning, thinning, memory_order_relaxed);
}

void tb_link_log_standing(tb_link_log *log, tb_link_standing *standing)
{
    *standing = (tb_link_standing){.begun = atomic_load_explicit(&log->begun, memory_order_acquire)};
    standing->seen = atomic_load_explicit(&log->seen, memory_order_acquire);
    standing->phase = atomic_load_explicit(&log->phase, memory_order_relaxed);
    standing->waits_for = atomic_load_explicit(&log->waits_for, memory_order_relaxed);
    standing->received_bytes = atomic_load_explicit(&log->received_bytes, memory_order_relaxed);
}

int tb_link_log_read(tb_link_log *log, int place, tb_link_told *told)
{
    tb_link_entry *entry = &log->entries[place];
    told->sequence = atomic_load_explicit(&entry->sequence, memory_order_acquire);
    if (!told->sequence)
        return 0;
    told->status = atomic_load_explicit(&entry->status, memory_order_acquire);
    told->began_ns = entry->began_ns;
    told->ended_ns = entry->ended_ns;
    told->positions = entry->positions;
    told->timeout_ns = entry->timeout_ns;
    told->claim_bytes = entry->claim_bytes;
    memcpy(told->claim, entry->claim, TB_CLAIM_BYTES);
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&entry->sequence, memory_order_relaxed) == told->sequence &&
           told->claim_bytes <= TB_CLAIM_BYTES;
}
