/* The board's memory, and the bells on it; board.h has the layout. */
#define _GNU_SOURCE
#include "board.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    SLOTS_OFFSET = 16384,
    PAGE_BYTES = 4096,
    BOARD_BYTES_MAX = 1 << 30, /* As limits.SHARED_BYTES_MAX. */
};

_Static_assert(sizeof(tb_board) <= SLOTS_OFFSET, "the verdicts reach into the slots");

static size_t slot_bytes(void)
{
    return (sizeof(tb_slot) + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

static size_t stages_offset(int positions)
{
    return SLOTS_OFFSET + positions * slot_bytes();
}

size_t tb_stage_bytes(size_t board_bytes, int positions)
{
    size_t offset = stages_offset(positions);
    return board_bytes < offset ? 0 : (board_bytes - offset) / positions / TB_CHUNK_BYTES * TB_CHUNK_BYTES;
}

size_t tb_board_bytes(int positions, size_t stage_bytes)
{
    if (positions < 1 || positions > TB_POSITIONS_MAX)
        return 0;
    if (!stage_bytes)
        stage_bytes = tb_stage_bytes(BOARD_BYTES_MAX, positions);
    return stages_offset(positions) + positions * stage_bytes;
}

void tb_board_format(void *memory, size_t bytes, int positions)
{
    tb_board *board = memory;
    board->version = TB_VERSION;
    board->positions = positions;
    board->bytes = bytes;
    board->magic = TB_MAGIC;
}

int tb_board_fits(const void *memory, size_t bytes, int positions)
{
    const tb_board *board = memory;
    return positions >= 1 && positions <= TB_POSITIONS_MAX &&
           tb_stage_bytes(bytes, positions) >= TB_PLACES * TB_CHUNK_BYTES && board->magic == TB_MAGIC &&
           board->version == TB_VERSION && board->positions == (uint32_t)positions && board->bytes == bytes;
}

tb_slot *tb_slot_of(tb_board *board, int position)
{
    return (tb_slot *)((unsigned char *)board + SLOTS_OFFSET + position * slot_bytes());
}

unsigned char *tb_stage_of(tb_board *board, int positions, int position, size_t stage_bytes)
{
    return (unsigned char *)board + stages_offset(positions) + position * stage_bytes;
}

/* Not a private futex: the processes map the same file at different addresses. */
static void ring(tb_slot *slot)
{
    atomic_fetch_add(&slot->bell, 1);
    syscall(SYS_futex, &slot->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void tb_ring_all(tb_board *board, int positions)
{
    for (int position = 0; position < positions; position++)
        ring(tb_slot_of(board, position));
}

void tb_board_end(void *memory, int positions, int state)
{
    tb_board *board = memory;
    uint32_t before = atomic_load(&board->state);
    while (before < (uint32_t)state && !atomic_compare_exchange_weak(&board->state, &before, state))
        ;
    tb_ring_all(board, positions);
}

void tb_publish(tb_slot *own, tb_counter counter, uint64_t value)
{
    atomic_store_explicit(tb_counter_of(own, counter), value, memory_order_release);
    /* Either this sees who is about to sleep, or that one sees the counter. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&own->sleepers, memory_order_relaxed)) {
        atomic_store(&own->sleepers, 0);
        ring(own);
    }
}

void tb_park(tb_slot *slot, tb_counter counter, uint64_t value, uint64_t timeout_ns, int (*changed)(void *), void *of)
{
    struct timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    uint32_t bell = atomic_load(&slot->bell);
    atomic_store(&slot->sleepers, 1);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(tb_counter_of(slot, counter)) >= value || changed(of))
        return;
    syscall(SYS_futex, &slot->bell, FUTEX_WAIT, bell, &timeout, NULL, 0);
}
