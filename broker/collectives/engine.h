/* One position's part in the operations on a board (board.h): carried out on the thread that calls, or on a thread of
   the engine's own, one after another, the urgent ones first (engine_turn.c). None of this needs Python's lock. */
#ifndef TENSORBUS_ENGINE_H
#define TENSORBUS_ENGINE_H

#include "board.h"
#include "kernels.h"

#include <pthread.h>
#include <sys/types.h>

enum tb_kind {
    TB_ALL_REDUCE,
    TB_BROADCAST,
    TB_ALL_GATHER,
    TB_REDUCE_SCATTER,
    TB_BARRIER,
    TB_REDUCE,
    TB_GATHER,
    TB_SCATTER,
    TB_ALL_TO_ALL
};

/* One of the arrays that are an operation's array when put end to end: where it lies, and where it starts in that. */
typedef struct {
    unsigned char *data;
    size_t start, bytes;
} tb_piece;

/* An operation. Whoever makes one keeps it, and all that it points to, until its status is not PENDING. */
typedef struct tb_task {
    /* What is asked for. */
    int kind;
    tb_reduce kernel;     /* Of the kinds that reduce. */
    int divisor;          /* Of a mean the number of positions, else 1. */
    int root;             /* The position that has or gets the array, of the kinds that have one. */
    int impossible;       /* These positions cannot do what all may ask for: it ends as a mismatch. */
    size_t item_bytes;    /* Of one element. */
    size_t bytes;         /* Of the array that each position contributes; of a scatter, of the whole. */
    const void *source;   /* That array. Of a broadcast and a scatter only the root has one. */
    void *target;         /* Where the result belongs, if this position gets one: for all_reduce perhaps the same array;
                             for all_gather, gather and all_to_all what all positions give, one after another; for
                             reduce_scatter and scatter this position's part. */
    const tb_piece *sources, *targets; /* In place of `source` or `target`: arrays that count as one. */
    int source_count, target_count;
    size_t target_bytes;
    int scratch;          /* The target is nobody's yet: after a failure it may hold anything. */
    int priority;         /* The highest goes first, of those that have been submitted everywhere. */
    const void *claim;    /* What is compared. */
    uint32_t claim_bytes; /* At most TB_CLAIM_BYTES. */
    uint64_t timeout_ns;
    int (*interrupt)(void); /* Called now and then, on the thread that carries it out; not 0 gives up. May be NULL. */

    /* What has become of it. */
    _Atomic int status;
    _Atomic int cancelled;
    uint64_t call;
    _Atomic uint64_t sequence; /* 0 before it has begun. */
    uint64_t deadline_ns;
    uint64_t positions;         /* MISSING: who. MISMATCH: whose claims are in `record`. INTERRUPTED: who. */
    uint64_t failed_timeout_ns; /* MISSING: whose deadline it was. */
    const tb_record *record;    /* MISMATCH; it stays a while. */

    struct tb_task *next;
} tb_task;

typedef struct {
    tb_board *board;
    size_t board_bytes;
    int position, positions;
    uint64_t sequence; /* Of the last operation that was begun. */
    uint64_t calls;    /* Operations that were asked for. */
    uint64_t spin_ns;
    int crowded; /* More positions than processors: to spin would only keep others from running. */
    int sleepy;  /* So many waits are to be slept through: another thread computes on this processor. */
    int sleep_waits; /* As many the next time that this shows. */
    void *undo;
    size_t undo_bytes;
    pid_t process;

    pthread_mutex_t lock;
    pthread_cond_t work, done;
    pthread_t thread;
    int has_thread, busy, stopping;
    int descriptor; /* An eventfd that tells of each operation done by the thread; -1 without. */
    tb_task *first, *last;
} tb_engine;

/* An engine on the board in a file, of which it makes a mapping of its own; NULL with an errno: EINVAL when the file holds
   no board of so many positions. `told` is the descriptor of tb_engine. */
tb_engine *tb_engine_new(int file, size_t bytes, int positions, int position, int told);

/* No operation begins any more, those that have no verdict end, and so does the board unless this process is a forked
   child. Returns when the thread has ended. */
void tb_engine_close(tb_engine *engine);

/* Frees a closed engine that nobody is in. */
void tb_engine_free(tb_engine *engine);

/* Carries an operation out, if none is under way or waits; says whether it has. */
int tb_engine_run(tb_engine *engine, tb_task *task);

/* Lets the engine's thread carry an operation out, behind all others. Returns 0, or an errno. */
int tb_engine_submit(tb_engine *engine, tb_task *task);

/* Has an operation fail on all positions, at once or when its turn comes, unless its verdict is given. */
void tb_engine_cancel(tb_engine *engine, tb_task *task);

/* Takes the operation whose turn it is out of those that wait; the lock is held (engine_turn.c). */
tb_task *tb_take_turn(tb_engine *engine);

/* Says which call the operation of a turn was, before its verdict fails it. */
void tb_settle_turn(tb_engine *engine, uint64_t sequence, uint64_t call);

/* Waits until an operation is not PENDING, at most so long; returns its status. */
int tb_engine_wait(tb_engine *engine, tb_task *task, uint64_t timeout_ns);

/* Carries one operation out (engine_operation.c); returns its status. */
int tb_carry_out(tb_engine *engine, tb_task *task);

#endif
