/* An operation of a collective engine, and whose turn it is: operations are carried out on the thread that calls, or on a
   thread of the engine's own, one after another in the order in which they were begun, unless the engine chooses another one.
   None of this needs Python's lock.

   The engines are those of a board (engine.h), for ranks on one host, and of links (ring_engine.h), between hosts. */
#ifndef TENSORBUS_TURNS_H
#define TENSORBUS_TURNS_H

#include "kernels.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    TB_POSITIONS_MAX = 64,
    TB_LINE_BYTES = 128, /* Two lines of 64: processors fetch them in pairs. */
    TB_CLAIM_BYTES = 508,
    TB_INLINE_BYTES = 4096, /* An array that is no longer travels with the claim. */
};

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

/* Between hosts, the way in which the bytes go. */
enum tb_schedule { TB_AUTO, TB_RING, TB_HALVING, TB_HIERARCHICAL };

/* What becomes of an operation. The first one is no verdict; the last three are never written to a board. */
enum tb_outcome {
    TB_PENDING = 0,
    TB_COMMITTED = 1,
    TB_MISSING = 2,     /* Some positions did not come, or did not go on, until the deadline of another one. */
    TB_MISMATCH = 3,    /* The positions do not claim the same. */
    TB_INTERRUPTED = 4, /* The program of one position gave up: a signal, or no memory. */
    TB_OVER = 5,        /* The generation has ended. */
    TB_NO_MEMORY = 6,
    TB_BROKEN = 7,    /* A board or a link says what cannot be: somebody does not keep to the rules. */
    TB_UNDECIDED = 8, /* Of links: this position has the result, and cannot know whether another one has applied it. */
};

typedef struct {
    uint32_t bytes;
    unsigned char data[TB_CLAIM_BYTES];
} tb_claim;

typedef struct {
    _Alignas(TB_LINE_BYTES) _Atomic uint64_t sequence;
    uint64_t positions; /* A bit for each: those that were missing, or whose claims follow. */
    uint64_t timeout_ns;
    tb_claim claims[TB_POSITIONS_MAX];
} tb_record;

/* One of the arrays that are an operation's array when put end to end: where it lies, and where it starts in that. */
typedef struct {
    unsigned char *data;
    size_t start, bytes;
} tb_piece;

/* Where an array lies in memory that all positions map. */
typedef struct {
    uint64_t place;             /* Which memory, and where in it, the same on all positions; 0: in none. */
    unsigned char *const *bases; /* Where each position's memory begins here. */
    size_t offset;
} tb_shared;

/* An operation. Whoever makes one keeps it, and all that it points to, until its status is neither PENDING nor
   UNDECIDED. */
typedef struct tb_task {
    /* What is asked for. */
    int kind;
    int schedule;         /* Between hosts. */
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
    const tb_piece *sources, *targets; /* In place of `source` or `target`: arrays that count as one. Not over links. */
    int source_count, target_count;
    tb_shared shared_source, shared_target; /* Of an all_reduce on a board, out of place. */
    size_t target_bytes;
    int scratch;          /* The target is nobody's yet: after a failure it may hold anything. */
    int priority;         /* The highest goes first, of those that have been submitted everywhere. Not over links. */
    const void *claim;    /* What is compared. */
    uint32_t claim_bytes; /* At most TB_CLAIM_BYTES. */
    uint64_t timeout_ns;
    int (*interrupt)(void); /* Called now and then, on the thread that carries it out; not 0 gives up. May be NULL. */

    /* What has become of it. */
    _Atomic int status;
    _Atomic int cancelled;
    uint64_t call;             /* Its number among those that were asked for. */
    _Atomic uint64_t sequence; /* 0 before it has begun. */
    uint64_t deadline_ns;
    uint64_t positions;         /* MISSING: who. MISMATCH: whose claims are in `record`. INTERRUPTED: who. */
    uint64_t failed_timeout_ns; /* MISSING: whose deadline it was. */
    uint64_t ended_ns;          /* Of one that was submitted: when it was done, on CLOCK_MONOTONIC. */
    const tb_record *record;    /* MISMATCH; it stays a while. */
    int doubt;                  /* UNDECIDED: what it is if nobody has applied the result. */

    struct tb_task *next;
} tb_task;

typedef struct {
    void *engine;
    int (*carry_out)(void *engine, tb_task *task); /* Carries one operation out; returns its status. */
    int (*leftover)(void *engine); /* Goes on with what is left of earlier ones; says whether there is more. May be NULL. */
    /* Which of those that wait is next; NULL is the first. Also asked when none waits, before one on the thread that calls.
       The lock is held. May be NULL. */
    tb_task *(*choose)(void *engine);
    /* A task has been cancelled, on any thread: has it fail at once, if it has begun. May be NULL. */
    void (*cancel)(void *engine, tb_task *task);
    pid_t process;

    pthread_mutex_t lock;
    pthread_cond_t work, done;
    pthread_t thread;
    int has_thread, busy, stopping, has_leftover;
    int descriptor; /* An eventfd that tells of each operation done by the thread; -1 without. */
    uint64_t calls; /* Operations that were asked for. */
    tb_task *first, *last;
} tb_turns;

/* Turns of an engine, of which the other members are set already. `told` is a descriptor of which a duplicate is kept, or
   -1. Returns 0, or an errno. */
int tb_turns_begin(tb_turns *turns, int told);

/* No operation begins any more; those that have not begun are OVER. Returns when the thread has ended. Whoever calls has
   seen to it that what is under way ends. In a forked child there is nothing to do, which it says with 0. */
int tb_turns_stop(tb_turns *turns);

/* Whether this process is a forked child of the one that the turns were made in. */
int tb_turns_forked(const tb_turns *turns);

/* Frees what stopped turns hold. */
void tb_turns_free(tb_turns *turns);

/* Carries an operation out, if none is under way or waits; says whether it has. */
int tb_turns_run(tb_turns *turns, tb_task *task);

/* Lets the engine's thread carry an operation out, behind all others. Returns 0, or an errno. */
int tb_turns_submit(tb_turns *turns, tb_task *task);

/* Has an operation fail on all positions, at once or when its turn comes, unless its verdict is given. Any thread may call. */
void tb_turns_cancel(tb_turns *turns, tb_task *task);

/* Waits until an operation is not PENDING, at most so long; returns its status. */
int tb_turns_wait(tb_turns *turns, tb_task *task, uint64_t timeout_ns);

/* From now on this thread runs for moments: where the kernel lets a thread say so (Linux 6.12, for everybody), it goes before
   one that computes, in place of waiting until that one's turn is over. Returns what tb_run_as_before needs; 0 if nothing was
   changed. */
uint64_t tb_run_in_moments(void);
void tb_run_as_before(uint64_t slice_ns);

uint64_t tb_now_ns(void);

#endif
