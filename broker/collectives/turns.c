/* Whose turn it is; turns.h says what each call does. */
#define _GNU_SOURCE
#include "turns.h"
#include "rounding.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LEFTOVER_NS = 10000000, MOMENT_NS = 100000 };

uint64_t tb_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static struct timespec moment(uint64_t at_ns)
{
    return (struct timespec){at_ns / 1000000000, at_ns % 1000000000};
}

int tb_turns_begin(tb_turns *turns, int told)
{
    /* Its own, because who made it may close it while an operation is under way. */
    turns->descriptor = told < 0 ? -1 : fcntl(told, F_DUPFD_CLOEXEC, 0);
    if (told >= 0 && turns->descriptor < 0)
        return errno;
    turns->process = getpid();
    pthread_mutex_init(&turns->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&turns->work, &monotonic);
    pthread_cond_init(&turns->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return 0;
}

static void finish(tb_turns *turns, tb_task *task, int status)
{
    task->ended_ns = tb_now_ns();
    atomic_store_explicit(&task->status, status, memory_order_release);
    pthread_cond_broadcast(&turns->done);
    if (turns->descriptor >= 0) {
        uint64_t one = 1;
        /* A full counter is as good as one more: whoever reads it looks at all operations. */
        ssize_t written = write(turns->descriptor, &one, sizeof one);
        (void)written;
    }
}

static tb_task *take_first(tb_turns *turns)
{
    tb_task *task = turns->first;
    turns->first = task->next;
    return task;
}

static tb_task *take_turn(tb_turns *turns)
{
    tb_task *task = turns->choose ? turns->choose(turns->engine) : NULL, *before = turns->first;
    if (!task || task == turns->first)
        return take_first(turns);
    while (before->next != task)
        before = before->next;
    before->next = task->next;
    if (turns->last == task)
        turns->last = before;
    return task;
}

static int carry_out(tb_turns *turns, tb_task *task)
{
    unsigned before = tb_round_as_usual();
    int status = turns->carry_out(turns->engine, task);
    tb_round_as_before(before);
    return status;
}

static void carry_on(tb_turns *turns)
{
    struct timespec soon = moment(tb_now_ns() + LEFTOVER_NS);
    pthread_cond_timedwait(&turns->work, &turns->lock, &soon);
    if (turns->first || turns->busy || turns->stopping)
        return;
    turns->busy = 1;
    pthread_mutex_unlock(&turns->lock);
    int more = turns->leftover(turns->engine);
    pthread_mutex_lock(&turns->lock);
    turns->busy = 0;
    turns->has_leftover = more;
}

/* As the kernel's struct sched_attr, which the C library does not have everywhere. */
typedef struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
} scheduling;

/* Gives this thread turns of so long; returns how long they were, 0 if that is not to be had or was so already. */
static uint64_t run_for(uint64_t slice_ns)
{
    scheduling attributes = {.size = sizeof attributes};
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) || attributes.policy)
        return 0;
    uint64_t before = attributes.runtime;
    if (!before || before == slice_ns)
        return 0;
    attributes.size = sizeof attributes;
    attributes.runtime = slice_ns;
    return syscall(SYS_sched_setattr, 0, &attributes, 0) ? 0 : before;
}

uint64_t tb_run_in_moments(void) { return run_for(MOMENT_NS); }

void tb_run_as_before(uint64_t slice_ns)
{
    if (slice_ns)
        run_for(slice_ns);
}

static void *work(void *of)
{
    tb_turns *turns = of;
    tb_run_in_moments(); /* And sleeps in between. */
    pthread_mutex_lock(&turns->lock);
    while (!turns->stopping) {
        if (turns->busy || (!turns->first && !turns->has_leftover)) {
            pthread_cond_wait(&turns->work, &turns->lock);
            continue;
        }
        if (!turns->first) {
            carry_on(turns);
            continue;
        }
        tb_task *task = take_turn(turns);
        turns->busy = 1;
        pthread_mutex_unlock(&turns->lock);
        int status = carry_out(turns, task);
        int more = turns->leftover && turns->leftover(turns->engine);
        pthread_mutex_lock(&turns->lock);
        turns->busy = 0;
        turns->has_leftover = more;
        finish(turns, task, status);
    }
    while (turns->first)
        finish(turns, take_first(turns), TB_OVER);
    pthread_mutex_unlock(&turns->lock);
    return NULL;
}

/* Signals are for Python's threads. */
static int start_thread(tb_turns *turns)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&turns->thread, NULL, work, turns);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    turns->has_thread = !error;
    return error;
}

int tb_turns_run(tb_turns *turns, tb_task *task)
{
    pthread_mutex_lock(&turns->lock);
    /* What an earlier call has left ends sooner with this one than without it. */
    int free = !turns->busy && !turns->first && !turns->stopping;
    if (free) {
        turns->busy = 1;
        task->call = ++turns->calls;
        if (turns->choose)
            turns->choose(turns->engine);
    }
    pthread_mutex_unlock(&turns->lock);
    if (!free)
        return 0;
    task->deadline_ns = tb_now_ns() + task->timeout_ns;
    int status = carry_out(turns, task);
    int more = turns->leftover && turns->leftover(turns->engine);
    pthread_mutex_lock(&turns->lock);
    turns->busy = 0;
    turns->has_leftover = more;
    atomic_store_explicit(&task->status, status, memory_order_release);
    /* Without a thread it is left until the next operation. */
    if (more && !turns->has_thread && !turns->stopping)
        start_thread(turns);
    if (turns->first || turns->stopping || more)
        pthread_cond_broadcast(&turns->work);
    pthread_mutex_unlock(&turns->lock);
    return 1;
}

int tb_turns_submit(tb_turns *turns, tb_task *task)
{
    int error = 0;
    task->deadline_ns = tb_now_ns() + task->timeout_ns;
    task->next = NULL;
    pthread_mutex_lock(&turns->lock);
    if (turns->stopping)
        finish(turns, task, TB_OVER);
    else if (turns->has_thread || !(error = start_thread(turns))) {
        task->call = ++turns->calls;
        if (turns->first)
            turns->last->next = task;
        else
            turns->first = task;
        turns->last = task;
        pthread_cond_broadcast(&turns->work);
    }
    pthread_mutex_unlock(&turns->lock);
    return error;
}

void tb_turns_cancel(tb_turns *turns, tb_task *task)
{
    atomic_store(&task->cancelled, 1);
    if (turns->cancel && !tb_turns_forked(turns))
        turns->cancel(turns->engine, task);
}

int tb_turns_wait(tb_turns *turns, tb_task *task, uint64_t timeout_ns)
{
    int status = atomic_load_explicit(&task->status, memory_order_acquire);
    if (status != TB_PENDING)
        return status;
    struct timespec until = moment(tb_now_ns() + timeout_ns);
    pthread_mutex_lock(&turns->lock);
    while (!(status = atomic_load(&task->status)) &&
           pthread_cond_timedwait(&turns->done, &turns->lock, &until) != ETIMEDOUT)
        ;
    pthread_mutex_unlock(&turns->lock);
    return atomic_load_explicit(&task->status, memory_order_acquire);
}

int tb_turns_forked(const tb_turns *turns) { return turns->process != getpid(); }

int tb_turns_stop(tb_turns *turns)
{
    /* In a forked child there is no thread, and the lock may be held by nobody. */
    if (tb_turns_forked(turns)) {
        turns->has_thread = 0;
        return 0;
    }
    pthread_mutex_lock(&turns->lock);
    turns->stopping = 1;
    int has_thread = turns->has_thread;
    turns->has_thread = 0;
    pthread_cond_broadcast(&turns->work);
    pthread_mutex_unlock(&turns->lock);
    if (has_thread)
        pthread_join(turns->thread, NULL);
    return 1;
}

void tb_turns_free(tb_turns *turns)
{
    if (turns->descriptor >= 0)
        close(turns->descriptor);
}
