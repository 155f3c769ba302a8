/* Bytes in and out of lanes: words are put together and taken apart here, and pieces go straight from and to their places.

   A read takes what is wanted and a little more, so that the next head, or a whole small word, comes with it. */
#define _GNU_SOURCE
#include "ring_engine_operation.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    ROUNDS = 8,
    EVENTS = 64,
    JUNK_BYTES = TB_PIECE_BYTES,
    ABORTS_KEPT = 16,
    SPIN_STEP_NS = 10000,
    SPIN_MAX_NS = 100000,
    COMPUTING_NS = 500000, /* A yield to another engine takes less. */
    CALM_WAITS = 200,
};

static const unsigned char ZEROS[64 << 10];

static size_t least(size_t first, size_t second) { return first < second ? first : second; }

/* What goes. */

void tb_say(tb_exchange *x, int position, tb_head head, const void *body, const void *more, size_t more_bytes)
{
    tb_peer *peer = &x->ring->peers[position];
    size_t body_bytes = head.bytes - more_bytes;
    if (peer->gone || peer->out_to + sizeof head + head.bytes > x->ring->outbox_bytes)
        return;
    unsigned char *end = peer->outbox + peer->out_to;
    memcpy(end, &head, sizeof head);
    if (body_bytes)
        memcpy(end + sizeof head, body, body_bytes);
    if (more_bytes)
        memcpy(end + sizeof head + body_bytes, more, more_bytes);
    peer->out_to += sizeof head + head.bytes;
    x->stirred = 1;
}

void tb_say_all(tb_exchange *x, tb_kind_of_word kind, int code, uint64_t first, uint64_t second)
{
    tb_head head = {TB_LINK_MAGIC, kind, code, 0, 0, x->sequence, first, second};
    for (int position = 0; position < x->ring->positions; position++)
        if (position != x->ring->position)
            tb_say(x, position, head, "", "", 0);
}

static tb_head word_at(const tb_peer *peer, size_t at)
{
    tb_head head;
    memcpy(&head, peer->outbox + at, sizeof head);
    return head;
}

static size_t word_bytes(const tb_peer *peer, size_t at) { return sizeof(tb_head) + word_at(peer, at).bytes; }

/* Why the oldest operations failed is still said: the other end would only see that they have. */
void tb_forget_words(tb_peer *peer)
{
    int under_way = peer->out_from != peer->out_word, aborts = 0;
    size_t kept = 0, from = peer->out_word, end = peer->out_to;
    for (size_t size; from < end; from += size, under_way = 0) {
        size = word_bytes(peer, from);
        int is_abort = word_at(peer, from).kind == TB_ABORT && aborts < ABORTS_KEPT;
        aborts += is_abort;
        if (under_way || is_abort) {
            memmove(peer->outbox + kept, peer->outbox + from, size);
            kept += size;
        }
    }
    peer->out_from -= peer->out_word;
    peer->out_word = 0;
    peer->out_to = kept;
}

/* Hands over what the socket takes; 0 when that is nothing. */
static size_t hand_over(tb_lane *lane, struct iovec *parts, int count, size_t wanted)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    ssize_t sent = sendmsg(lane->file, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR)
        return 0;
    if (sent < 0 && errno != EAGAIN)
        /* Its end is told behind all that has come. */
        lane->readable = lane->hung = 1;
    if (sent < (ssize_t)wanted)
        lane->writable = 0;
    return sent < 0 ? 0 : sent;
}

static int send_words(tb_lane *lane, tb_peer *peer)
{
    size_t left = peer->out_to - peer->out_from;
    struct iovec part = {peer->outbox + peer->out_from, left};
    size_t sent = hand_over(lane, &part, 1, left);
    peer->out_from += sent;
    while (peer->out_word < peer->out_from && peer->out_word + word_bytes(peer, peer->out_word) <= peer->out_from)
        peer->out_word += word_bytes(peer, peer->out_word);
    if (peer->out_from == peer->out_to)
        peer->out_word = peer->out_from = peer->out_to = 0;
    return sent > 0;
}

static int send_piece(tb_lane *lane)
{
    struct iovec parts[2];
    size_t head_sent = least(lane->out_sent, sizeof(tb_head)), body_sent = lane->out_sent - head_sent;
    size_t body_left = lane->out.bytes - body_sent;
    if (!lane->out_body)
        body_left = least(body_left, sizeof ZEROS);
    parts[0] = (struct iovec){(unsigned char *)&lane->out + head_sent, sizeof(tb_head) - head_sent};
    parts[1] = (struct iovec){(void *)(lane->out_body ? lane->out_body + body_sent : ZEROS), body_left};
    size_t sent = hand_over(lane, parts, 2, parts[0].iov_len + body_left);
    lane->out_sent += sent;
    lane->out_busy = lane->out_sent < sizeof(tb_head) + lane->out.bytes;
    return sent > 0;
}

static int has_words(const tb_ring *ring, const tb_lane *lane)
{
    return !lane->number && ring->peers[lane->peer].out_to;
}

int tb_send(tb_exchange *x, tb_lane *lane)
{
    int moved = 0;
    for (int round = 0; lane->writable && round < ROUNDS; round++)
        if (lane->out_busy)
            moved |= send_piece(lane);
        else if (has_words(x->ring, lane))
            moved |= send_words(lane, &x->ring->peers[lane->peer]);
        else if (tb_piece_to_send(x, lane))
            moved |= send_piece(lane);
        else
            break;
    return moved;
}

int tb_send_leftover(void *of)
{
    tb_ring *ring = of;
    int more = 0;
    for (tb_lane *lane = ring->lanes; lane < ring->lanes + ring->lane_count; lane++) {
        if (ring->peers[lane->peer].gone || (!lane->out_busy && !has_words(ring, lane)))
            continue;
        for (lane->writable = 1; lane->writable && (lane->out_busy || has_words(ring, lane));)
            if (lane->out_busy)
                send_piece(lane);
            else
                send_words(lane, &ring->peers[lane->peer]);
        more |= !lane->hung && (lane->out_busy || has_words(ring, lane));
    }
    /* Whoever has ended the engine meanwhile leaves it to who is in it. */
    if (atomic_load(&ring->over))
        tb_shut(ring);
    return more && !atomic_load(&ring->over);
}

void tb_shut(tb_ring *ring)
{
    for (int i = 0; i < ring->lane_count; i++)
        shutdown(ring->lanes[i].file, SHUT_RDWR);
}

/* What comes. */

/* Reads into a place, and up to so much beyond it; returns how much is in the place: 0 for nothing yet, -1 at the end. */
static ssize_t fetch(tb_lane *lane, unsigned char *place, size_t wanted, size_t beyond)
{
    size_t there = least(lane->ahead_to - lane->ahead_from, wanted);
    if (there) {
        memcpy(place, lane->ahead + lane->ahead_from, there);
        lane->ahead_from += there;
        return there;
    }
    if (!lane->readable)
        return 0;
    struct iovec parts[2] = {{place, wanted}, {lane->ahead, beyond}};
    ssize_t got = readv(lane->file, parts, 2);
    if (got < 0 && errno == EINTR)
        return 0;
    if (got < 0 && errno == EAGAIN)
        return lane->readable = 0;
    if (got <= 0) {
        lane->readable = lane->writable = 0;
        return -1;
    }
    /* Less than was asked for is all that there was. */
    if ((size_t)got < wanted + beyond && !lane->hung)
        lane->readable = 0;
    lane->ahead_from = 0;
    lane->ahead_to = (size_t)got > wanted ? got - wanted : 0;
    return least(got, wanted);
}

static int is_head(const tb_ring *ring, const tb_head *head)
{
    size_t bytes_max = head->kind == TB_MEET ? ring->meet_bytes : head->kind == TB_PIECE ? TB_PIECE_BYTES : 0;
    return head->magic == TB_LINK_MAGIC && head->kind >= TB_MEET && head->kind <= TB_ABORT && head->bytes <= bytes_max;
}

static tb_fate judge(tb_exchange *x, tb_lane *lane)
{
    const tb_head *head = &lane->head;
    if (!is_head(x->ring, head)) {
        tb_rubbish(x);
        return TB_HOLD;
    }
    if (head->sequence < x->sequence)
        return TB_SKIP;
    if (head->sequence > x->sequence) {
        if (!lane->number)
            tb_left_behind(x, lane->peer);
        return TB_HOLD;
    }
    if (head->kind == TB_PIECE ? tb_expect_piece(x, lane) : !lane->number)
        return TB_TAKE;
    tb_rubbish(x);
    return TB_HOLD;
}

static unsigned char *place_of(tb_exchange *x, tb_lane *lane)
{
    if (lane->fate == TB_SKIP)
        return x->ring->junk;
    if (lane->head.kind == TB_MEET)
        return x->ring->peers[lane->peer].meet + lane->body_bytes;
    return tb_piece_place(x, lane);
}

static void finish_word(tb_exchange *x, tb_lane *lane)
{
    if (lane->fate == TB_TAKE && lane->head.kind == TB_PIECE)
        tb_piece_came(x, lane);
    else if (lane->fate == TB_TAKE)
        tb_word_came(x, lane);
    lane->head_bytes = lane->body_bytes = lane->reduced = 0;
    lane->fate = TB_UNJUDGED;
}

int tb_receive(tb_exchange *x, tb_lane *lane)
{
    int moved = 0;
    for (int round = 0; round < ROUNDS * 2 && !x->verdict; round++) {
        int in_head = lane->head_bytes < sizeof(tb_head);
        if (!in_head && lane->fate == TB_UNJUDGED && (lane->fate = judge(x, lane)) == TB_HOLD) {
            lane->fate = TB_UNJUDGED;
            break;
        }
        size_t left = in_head ? sizeof(tb_head) - lane->head_bytes : lane->head.bytes - lane->body_bytes;
        ssize_t got = 0;
        if (left) {
            unsigned char *place = in_head ? (unsigned char *)&lane->head + lane->head_bytes : place_of(x, lane);
            got = fetch(lane, place, least(left, JUNK_BYTES), in_head ? TB_AHEAD_BYTES : sizeof(tb_head));
            if (got < 0)
                tb_lost(x, lane->peer);
            if (got <= 0)
                break;
            x->ring->peers[lane->peer].heard = moved = 1;
            x->received_bytes += got;
        }
        if (in_head) {
            lane->head_bytes += got;
            continue;
        }
        lane->body_bytes += got;
        if (got && lane->fate == TB_TAKE && lane->head.kind == TB_PIECE)
            tb_piece_grew(x, lane);
        if (lane->body_bytes == lane->head.bytes)
            finish_word(x, lane);
    }
    return moved;
}

int tb_watch(tb_ring *ring, uint64_t timeout_ns)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(ring->epoll, events, EVENTS, (timeout_ns + 999999) / 1000000);
    for (int i = 0; i < count; i++) {
        /* The bell has none. */
        tb_lane *lane = events[i].data.ptr;
        if (!lane) {
            uint64_t rung;
            ssize_t count_read = read(ring->bell, &rung, sizeof rung);
            (void)count_read;
            continue;
        }
        lane->readable |= !!(events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR));
        lane->hung |= !!(events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR));
        lane->writable |= !!(events[i].events & EPOLLOUT);
    }
    return count > 0;
}

/* Looks again and again while that costs less than to sleep and be woken; says whether something came. The processor is
   offered to others each time; when a program took it for long, the next waits only sleep: who wakes goes before it. */
static int spins(tb_ring *ring, uint64_t now)
{
    for (uint64_t end = now + ring->spin_ns, before = now; now < end; before = now) {
        sched_yield();
        if (tb_watch(ring, 0))
            return 1;
        now = tb_now_ns();
        if (now - before > COMPUTING_NS) {
            ring->calm = CALM_WAITS;
            return 0;
        }
    }
    return 0;
}

void tb_wait(tb_ring *ring, uint64_t now, uint64_t timeout_ns)
{
    if (!ring->calm && spins(ring, now)) {
        ring->spin_ns = least(ring->spin_ns + SPIN_STEP_NS, SPIN_MAX_NS);
        return;
    }
    tb_watch(ring, timeout_ns);
    if (ring->calm)
        ring->calm--;
    else if (tb_now_ns() - now < SPIN_MAX_NS)
        ring->spin_ns = least(ring->spin_ns + SPIN_STEP_NS, SPIN_MAX_NS);
    else
        ring->spin_ns /= 2;
}
