/* An engine of links from beginning to end; ring_engine.h says what each call does. */
#define _GNU_SOURCE
#include "ring_engine_operation.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static int open_lane(tb_ring *ring, tb_lane *lane, int file)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = lane};
    int on = 1, flags = fcntl(file, F_GETFL);
    lane->file = file;
    lane->writable = 1;
    lane->ahead = malloc(TB_AHEAD_BYTES);
    lane->stage = malloc(TB_PIECE_BYTES);
    if (!lane->ahead || !lane->stage || flags < 0 || fcntl(file, F_SETFL, flags | O_NONBLOCK))
        return 0;
    /* A socket of another family has no such option. */
    setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return !epoll_ctl(ring->epoll, EPOLL_CTL_ADD, file, &event);
}

static int open_all(tb_ring *ring, const int *files, const int *counts, int told)
{
    struct epoll_event bell = {.events = EPOLLIN, .data.ptr = NULL};
    tb_lane *lane = ring->lanes;
    unsigned char *words = ring->words;
    ring->epoll = epoll_create1(EPOLL_CLOEXEC);
    ring->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!ring->peers || !lane || !ring->junk || !words || !ring->records || ring->epoll < 0 || ring->bell < 0 ||
        epoll_ctl(ring->epoll, EPOLL_CTL_ADD, ring->bell, &bell))
        return 0;
    for (int position = 0; position < ring->positions; position++) {
        ring->peers[position].lanes = lane;
        ring->peers[position].count = counts[position];
        ring->peers[position].meet = words;
        ring->peers[position].outbox = words + ring->meet_bytes;
        words += ring->meet_bytes + ring->outbox_bytes;
        for (int number = 0; number < counts[position]; number++, lane++) {
            lane->peer = position;
            lane->number = number;
            if (!open_lane(ring, lane, *files++))
                return 0;
        }
    }
    int error = tb_turns_begin(&ring->turns, told);
    errno = error ? error : errno;
    return !error;
}

static void free_memory(tb_ring *ring)
{
    for (int i = 0; ring->lanes && i < ring->lane_count; i++) {
        free(ring->lanes[i].ahead);
        free(ring->lanes[i].stage);
    }
    if (ring->epoll >= 0)
        close(ring->epoll);
    if (ring->bell >= 0)
        close(ring->bell);
    free(ring->records);
    free(ring->words);
    free(ring->junk);
    free(ring->lanes);
    free(ring->peers);
    free(ring);
}

/* Wakes who is in an operation. */
static void ring_bell(tb_ring *ring)
{
    uint64_t one = 1;
    ssize_t written = write(ring->bell, &one, sizeof one);
    (void)written;
}

/* Who is in the operation, or comes to it, looks whether it is cancelled. */
static void cancel(void *of, tb_task *task)
{
    (void)task;
    ring_bell(of);
}

tb_ring *tb_ring_new(const int *files, const int *counts, int positions, int position, int told)
{
    tb_ring *ring = calloc(1, sizeof *ring);
    if (!ring)
        return NULL;
    for (int each = 0; each < positions; each++)
        ring->lane_count += counts[each];
    ring->positions = positions;
    ring->position = position;
    ring->epoll = ring->bell = -1;
    ring->peers = calloc(positions, sizeof *ring->peers);
    ring->lanes = calloc(ring->lane_count + 1, sizeof *ring->lanes);
    ring->short_bytes = tb_short_bytes(positions);
    ring->meet_bytes = TB_CLAIM_BYTES + ring->short_bytes;
    ring->outbox_bytes = 2 * (sizeof(tb_head) + ring->meet_bytes) + TB_WORDS_BYTES;
    ring->words = malloc(positions * (ring->meet_bytes + ring->outbox_bytes));
    ring->junk = malloc(TB_PIECE_BYTES);
    ring->records = aligned_alloc(TB_LINE_BYTES, TB_LINK_RECORDS * sizeof(tb_record));
    ring->turns.engine = ring;
    ring->turns.carry_out = tb_ring_carry_out;
    ring->turns.leftover = tb_send_leftover;
    ring->turns.cancel = cancel;
    if (!open_all(ring, files, counts, told)) {
        int error = errno;
        free_memory(ring);
        errno = error;
        return NULL;
    }
    return ring;
}

void tb_ring_end(tb_ring *ring)
{
    if (tb_turns_forked(&ring->turns))
        return;
    atomic_store(&ring->over, 1);
    ring_bell(ring);
    /* Whoever is in an operation does it at its end. */
    pthread_mutex_lock(&ring->turns.lock);
    if (!ring->turns.busy)
        tb_shut(ring);
    pthread_mutex_unlock(&ring->turns.lock);
}

void tb_ring_close(tb_ring *ring)
{
    tb_ring_end(ring);
    tb_turns_stop(&ring->turns);
}

void tb_ring_free(tb_ring *ring)
{
    for (int i = 0; i < ring->lane_count; i++)
        close(ring->lanes[i].file);
    tb_undo_free(&ring->undo);
    tb_undo_free(&ring->spare);
    tb_turns_free(&ring->turns);
    free_memory(ring);
}
