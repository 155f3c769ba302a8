/* Whose turn it is: operations on their callers' threads and on the engine's own; engine.h says what each call does. */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SPIN_FIRST_NS = 20000, MOMENT_NS = 100000 };

static int processors(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

static void *map_board(int file, size_t bytes, int positions)
{
    void *board = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (board == MAP_FAILED)
        return NULL;
    if (!tb_board_fits(board, bytes, positions)) {
        munmap(board, bytes);
        errno = EINVAL;
        return NULL;
    }
    madvise(board, bytes, MADV_HUGEPAGE);
    return board;
}

tb_engine *tb_engine_new(int file, size_t bytes, int positions, int position, int told)
{
    /* Its own, because who made it may close it while an operation is under way. */
    int descriptor = told < 0 ? -1 : fcntl(told, F_DUPFD_CLOEXEC, 0);
    if (told >= 0 && descriptor < 0)
        return NULL;
    void *board = map_board(file, bytes, positions);
    tb_engine *engine = board ? calloc(1, sizeof *engine) : NULL;
    if (board && !engine)
        munmap(board, bytes);
    if (descriptor >= 0 && !engine)
        close(descriptor);
    if (!engine)
        return NULL;
    engine->board = board;
    engine->board_bytes = bytes;
    engine->positions = positions;
    engine->position = position;
    engine->spin_ns = SPIN_FIRST_NS;
    engine->crowded = positions > processors();
    engine->process = getpid();
    engine->descriptor = descriptor;
    pthread_mutex_init(&engine->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&engine->work, NULL);
    pthread_cond_init(&engine->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return engine;
}

static void finish(tb_engine *engine, tb_task *task, int status)
{
    atomic_store_explicit(&task->status, status, memory_order_release);
    pthread_cond_broadcast(&engine->done);
    if (engine->descriptor >= 0) {
        uint64_t one = 1;
        /* A full counter is as good as one more: whoever reads it looks at all operations. */
        ssize_t written = write(engine->descriptor, &one, sizeof one);
        (void)written;
    }
}

static tb_task *take_first(tb_engine *engine)
{
    tb_task *task = engine->first;
    engine->first = task->next;
    return task;
}

/* As the kernel's struct sched_attr, which the C library does not have everywhere. */
typedef struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
} scheduling;

/* This thread runs for moments and sleeps in between. Where the kernel lets a thread say so (Linux 6.12, for everybody), it
   then goes before one that computes, such as the program's own, in place of waiting until that one's turn is over. */
static void run_in_moments(void)
{
    scheduling attributes = {.size = sizeof attributes};
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) || attributes.policy)
        return;
    attributes.size = sizeof attributes;
    attributes.runtime = MOMENT_NS;
    syscall(SYS_sched_setattr, 0, &attributes, 0);
}

static void *work(void *of)
{
    tb_engine *engine = of;
    run_in_moments();
    pthread_mutex_lock(&engine->lock);
    while (!engine->stopping) {
        if (!engine->first || engine->busy) {
            pthread_cond_wait(&engine->work, &engine->lock);
            continue;
        }
        tb_task *task = tb_take_turn(engine);
        engine->busy = 1;
        pthread_mutex_unlock(&engine->lock);
        int status = tb_carry_out(engine, task);
        pthread_mutex_lock(&engine->lock);
        engine->busy = 0;
        finish(engine, task, status);
    }
    while (engine->first)
        finish(engine, take_first(engine), TB_OVER);
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

/* Signals are for Python's threads. */
static int start_thread(tb_engine *engine)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&engine->thread, NULL, work, engine);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    engine->has_thread = !error;
    return error;
}

int tb_engine_run(tb_engine *engine, tb_task *task)
{
    pthread_mutex_lock(&engine->lock);
    int free = !engine->busy && !engine->first && !engine->stopping;
    if (free) {
        engine->busy = 1;
        task->call = ++engine->calls;
        atomic_store_explicit(&tb_slot_of(engine->board, engine->position)->offered, task->call, memory_order_release);
    }
    pthread_mutex_unlock(&engine->lock);
    if (!free)
        return 0;
    task->deadline_ns = tb_now_ns() + task->timeout_ns;
    int status = tb_carry_out(engine, task);
    pthread_mutex_lock(&engine->lock);
    engine->busy = 0;
    atomic_store_explicit(&task->status, status, memory_order_release);
    if (engine->first || engine->stopping)
        pthread_cond_broadcast(&engine->work);
    pthread_mutex_unlock(&engine->lock);
    return 1;
}

int tb_engine_submit(tb_engine *engine, tb_task *task)
{
    int error = 0;
    task->deadline_ns = tb_now_ns() + task->timeout_ns;
    task->next = NULL;
    pthread_mutex_lock(&engine->lock);
    if (engine->stopping)
        finish(engine, task, TB_OVER);
    else if (engine->has_thread || !(error = start_thread(engine))) {
        task->call = ++engine->calls;
        if (engine->first)
            engine->last->next = task;
        else
            engine->first = task;
        engine->last = task;
        pthread_cond_broadcast(&engine->work);
    }
    pthread_mutex_unlock(&engine->lock);
    return error;
}

int tb_engine_wait(tb_engine *engine, tb_task *task, uint64_t timeout_ns)
{
    int status = atomic_load_explicit(&task->status, memory_order_acquire);
    if (status != TB_PENDING)
        return status;
    uint64_t end = tb_now_ns() + timeout_ns;
    struct timespec until = {end / 1000000000, end % 1000000000};
    pthread_mutex_lock(&engine->lock);
    while (!(status = atomic_load(&task->status)) &&
           pthread_cond_timedwait(&engine->done, &engine->lock, &until) != ETIMEDOUT)
        ;
    pthread_mutex_unlock(&engine->lock);
    return atomic_load_explicit(&task->status, memory_order_acquire);
}

void tb_engine_close(tb_engine *engine)
{
    /* In a forked child there is no thread, the lock may be held by nobody, and the board is the parent's. */
    if (engine->process != getpid()) {
        engine->has_thread = 0;
        return;
    }
    tb_board_end(engine->board, engine->positions, TB_GONE);
    pthread_mutex_lock(&engine->lock);
    engine->stopping = 1;
    int has_thread = engine->has_thread;
    engine->has_thread = 0;
    pthread_cond_broadcast(&engine->work);
    pthread_mutex_unlock(&engine->lock);
    if (has_thread)
        pthread_join(engine->thread, NULL);
}

void tb_engine_free(tb_engine *engine)
{
    if (engine->undo)
        munmap(engine->undo, engine->undo_bytes);
    if (engine->descriptor >= 0)
        close(engine->descriptor);
    munmap(engine->board, engine->board_bytes);
    free(engine);
}
