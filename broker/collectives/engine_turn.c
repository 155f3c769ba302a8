/* Whose turn it is: which of the operations that wait is carried out next, the same one on all positions.

   Programs make the same calls in the same order, so a call's number means the same everywhere. But one position has
   submitted more of them than another when turn s comes. So that all choose alike:

     offered   each position says how many calls it had made when it chose its last turn. It says so before it chooses, and
               does not change it until the next turn.
     choice    the call of the highest priority, the oldest of equal ones, among those that all positions have offered; or
               the oldest of all when there is none.
     order     who has a choice writes it to the order of the turn, by compare-and-swap; the first one has chosen for all.

   A position whose oldest call is also its most urgent one has no choice and looks nowhere: whatever another one finds
   offered is part of what waits here, so the oldest is what that one takes. Who fails an operation writes its call to the
   order first, so that a position that comes later takes the same. Thus nothing is paid where no priorities are used.

   An order holds s << 32 | call, both cut to 32 bits. Should it ever say what cannot be, the calls that are compared with
   the claims differ, and the operation ends as a mismatch. */
#include "engine_operation.h"

static uint64_t order_of(uint64_t sequence, uint64_t call)
{
    return sequence << 32 | (call & 0xffffffff);
}

static _Atomic uint64_t *place_of_order(tb_engine *engine, uint64_t sequence)
{
    return &engine->board->verdicts[sequence % TB_VERDICTS].order;
}

/* The highest priority of the first calls, the oldest of equal ones; NULL when none of them waits. */
static tb_task *most_urgent(tb_engine *engine, uint64_t calls)
{
    tb_task *found = NULL;
    for (tb_task *task = engine->turns.first; task && task->call <= calls; task = task->next)
        if (!found || task->priority > found->priority)
            found = task;
    return found;
}

static uint64_t offered_by_all(tb_engine *engine)
{
    uint64_t least = engine->turns.calls;
    for (int position = 0; position < engine->positions; position++) {
        uint64_t offered = atomic_load(&tb_slot_of(engine->board, position)->offered);
        if (offered < least)
            least = offered;
    }
    return least;
}

static uint64_t settle(tb_engine *engine, uint64_t sequence, uint64_t call)
{
    _Atomic uint64_t *order = place_of_order(engine, sequence);
    uint64_t ours = order_of(sequence, call), word = atomic_load(order);
    while (word >> 32 != ours >> 32)
        if (atomic_compare_exchange_weak(order, &word, ours))
            word = ours;
    return word;
}

static tb_task *chosen(tb_engine *engine)
{
    /* What this position has said is seen by all before it looks at what they have said. */
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t sequence = engine->sequence + 1;
    tb_task *urgent = most_urgent(engine, offered_by_all(engine));
    uint64_t word = settle(engine, sequence, urgent ? urgent->call : engine->turns.first->call);
    for (tb_task *task = engine->turns.first; task; task = task->next)
        if (order_of(sequence, task->call) == word)
            return task;
    return engine->turns.first;
}

tb_task *tb_choose_turn(void *of)
{
    tb_engine *engine = of;
    uint64_t calls = engine->turns.calls;
    atomic_store_explicit(&tb_slot_of(engine->board, engine->position)->offered, calls, memory_order_release);
    tb_task *task = most_urgent(engine, calls);
    return task == engine->turns.first ? task : chosen(engine);
}

void tb_settle_turn(tb_engine *engine, uint64_t sequence, uint64_t call)
{
    settle(engine, sequence, call);
}
