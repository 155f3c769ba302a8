/* A line: a ring of frames in shared memory, from one publisher to the readers of one topic, without the broker in between.

   One writer, several readers; the broker is one of them. An entry is the very frame that would travel on the socket, with
   eight bytes in front, and is written once however many read it.

     ring       written by the publisher, and for the bit `closed` and `drained` by the broker; readers map it read-only
     0          +----------------------------------------------------------------+
                | magic u64 | version u32 | data_bytes u32                       |
     128        | head u64       position << 1 | closed                          |
     256        | drained u64    how far the broker has read                     |
     4096       +----------------------------------------------------------------+
                | data: position p lies at p % data_bytes                        |
                |   size u32 | mark u32 (ENTRY or PAD) | header | body | payload  |
                |   sizes are multiples of 8; a PAD fills the end of the ring    |
                +----------------------------------------------------------------+

     place      one for each reader, written by it, and for the bit `ejected` by the broker
     0          | taken u64      position << 1 | ejected                         |
     128        | sleeps u32     whether its bell has to be rung                 |
     256        | released u64   how many entries it has let go of              |
     384        | collected u64  of these, how many the broker knows of          |
     392        | wanted u64     how many there have to be until it tells the    |
                |                broker, which waits for them; 0 for never       |
     1024       | which they are: number n, by the position behind the entry,    |
                | lies at n % 384                                                |
                +----------------------------------------------------------------+

   Positions only grow. All that matters is decided in two words:

     head       the publisher writes an entry behind it, then exchanges `position` by what comes behind the entry. The broker
                closes by setting the bit. Whoever is first has decided: an exchange that fails has published nothing, and
                after the closing the position is final. A publisher that was stopped in the middle holds up nobody.
     taken      a reader copies an entry, then exchanges the position. The broker ejects by setting the bit, and knows from
                the position what the reader has got and what is left for the broker to deliver.

   Sleeping: a reader sets `sleeps`, then looks at `head` once more. The publisher exchanges `head`, then looks at `sleeps`.
   With a full fence between the two steps on both sides, at least one of them sees the other.

   Letting go: an entry whose payload is the place of a message in shared memory is the reader's to read until it says that
   it has let go of it. It writes the position, then `released`, makes a full fence, and looks at `wanted`; the broker
   writes `wanted`, makes a full fence, and looks at `released`. The broker reads `released` before `head`: what was let
   go of by then was published before, and is drained by the time at which it is looked up.

   A line is closed once, for ever; ejecting follows closing. So nothing that somebody may still copy is ever overwritten. */
#ifndef TENSORBUS_LINE_H
#define TENSORBUS_LINE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "broker/copy_bytes.h"

enum {
    TB_DIRECT_VERSION = 3,
    TB_DIRECT_DATA = 4096,     /* Where the data begins. */
    TB_DIRECT_HEADER = 52,     /* Bytes of a frame's header. */
    TB_DIRECT_FRONT = 8,       /* What is in front of it. */
    TB_DIRECT_READERS = 8,
    TB_DIRECT_RELEASES = 384,  /* Entries that a reader has let go of and that the broker need not know of yet. */
    TB_DIRECT_ENTRY = 0x7f4e5452,
    TB_DIRECT_PAD = 0x7f444150,
};
#define TB_DIRECT_MAGIC 0x0a31454e494c4254ull /* "TBLINE1\n" */

typedef struct {
    _Alignas(128) uint64_t magic;
    uint32_t version;
    uint32_t data_bytes;
    _Alignas(128) _Atomic uint64_t head;
    _Alignas(128) _Atomic uint64_t drained;
} tb_ring;

typedef struct {
    _Alignas(128) _Atomic uint64_t taken;
    _Alignas(128) _Atomic uint32_t sleeps;
    _Alignas(128) _Atomic uint64_t released;
    _Alignas(128) _Atomic uint64_t collected;
    _Atomic uint64_t wanted;
    _Alignas(1024) _Atomic uint64_t let_go[TB_DIRECT_RELEASES];
} tb_place;
_Static_assert(sizeof(tb_place) == 4096, "a place is a page");

/* What a process knows of a line by itself: nobody else can change it. */
typedef struct {
    tb_ring *ring;
    unsigned char *data;
    uint64_t data_bytes;
    uint64_t position; /* The writer's, or the broker's. */
    uint64_t limit;    /* The writer may write up to here, as it last saw. */
    tb_place *places[TB_DIRECT_READERS];
    int readers;
} tb_end;

/* What a process knows of the entries that one reader lets go of: the reader how many it has, the broker how many it knows of. */
typedef struct {
    tb_place *place;
    uint64_t count;
} tb_releases;

/* An entry that was found, with lengths that are known to lie in the ring. */
typedef struct {
    unsigned char header[TB_DIRECT_HEADER];
    const unsigned char *body, *payload;
    uint64_t body_bytes, payload_bytes;
    uint64_t behind; /* The position behind it. */
} tb_found;

enum tb_look { TB_NOTHING = 0, TB_FOUND = 1, TB_EJECTED = 2, TB_RUBBISH = 3 };

static inline void tb_ring_format(void *memory, uint32_t data_bytes)
{
    tb_ring *ring = memory;
    ring->magic = TB_DIRECT_MAGIC;
    ring->version = TB_DIRECT_VERSION;
    ring->data_bytes = data_bytes;
}

static inline int tb_ring_fits(const void *memory, uint64_t size_bytes)
{
    const tb_ring *ring = memory;
    return size_bytes > TB_DIRECT_DATA && ring->magic == TB_DIRECT_MAGIC && ring->version == TB_DIRECT_VERSION
        && ring->data_bytes == size_bytes - TB_DIRECT_DATA && ring->data_bytes % 8 == 0;
}

static inline void tb_end_open(tb_end *end, void *memory, uint64_t size_bytes)
{
    memset(end, 0, sizeof *end);
    end->ring = memory;
    end->data = (unsigned char *)memory + TB_DIRECT_DATA;
    end->data_bytes = size_bytes - TB_DIRECT_DATA;
    end->limit = end->data_bytes;
}

static inline uint64_t tb_padded(uint64_t bytes)
{
    return (bytes + 7) & ~(uint64_t)7;
}

static inline void tb_put_front(unsigned char *at, uint32_t size, uint32_t mark)
{
    memcpy(at, &size, 4);
    memcpy(at + 4, &mark, 4);
}

/* How far the writer may go: no reader's place, nor the broker's, is further behind than the ring is long. A place that
   claims what cannot be holds the writer up, until the broker closes the line. */
static inline uint64_t tb_writer_limit(tb_end *end)
{
    uint64_t least = atomic_load_explicit(&end->ring->drained, memory_order_acquire);
    for (int i = 0; i < end->readers; i++) {
        uint64_t taken = atomic_load_explicit(&end->places[i]->taken, memory_order_acquire) >> 1;
        if (taken < least)
            least = taken;
    }
    return least + end->data_bytes;
}

/* Writes an entry. Returns -1 if there is no room, -2 if the line is closed, else which readers sleep, a bit for each; they
   count as woken. */
static inline int tb_write(tb_end *end, const void *header, const void *body, uint64_t body_bytes, const void *payload,
                           uint64_t payload_bytes)
{
    uint64_t need = tb_padded(TB_DIRECT_FRONT + TB_DIRECT_HEADER + body_bytes + payload_bytes);
    uint64_t offset = end->position % end->data_bytes, pad = 0;
    if (need > end->data_bytes / 2)
        return -1;
    if (offset + need > end->data_bytes)
        pad = end->data_bytes - offset;
    uint64_t behind = end->position + pad + need;
    if (behind > end->limit) {
        end->limit = tb_writer_limit(end);
        if (behind > end->limit)
            return -1;
    }
    unsigned char *at = end->data + offset;
    if (pad) {
        tb_put_front(at, (uint32_t)pad, TB_DIRECT_PAD);
        at = end->data;
    }
    tb_put_front(at, (uint32_t)need, TB_DIRECT_ENTRY);
    at += TB_DIRECT_FRONT;
    memcpy(at, header, TB_DIRECT_HEADER);
    at += TB_DIRECT_HEADER;
    if (body_bytes)
        memcpy(at, body, body_bytes);
    if (payload_bytes)
        copy_bytes(at + body_bytes, payload, payload_bytes);
    uint64_t expected = end->position << 1;
    if (!atomic_compare_exchange_strong(&end->ring->head, &expected, behind << 1))
        return -2;
    end->position = behind;
    atomic_thread_fence(memory_order_seq_cst);
    int sleepers = 0;
    for (int i = 0; i < end->readers; i++)
        if (atomic_load_explicit(&end->places[i]->sleeps, memory_order_relaxed)
            && atomic_exchange(&end->places[i]->sleeps, 0))
            sleepers |= 1 << i;
    return sleepers;
}

/* Looks at what lies at a position; `*position` moves over a pad. */
static inline int tb_look_at(tb_end *end, uint64_t *position, tb_found *found)
{
    uint64_t head = atomic_load_explicit(&end->ring->head, memory_order_acquire) >> 1;
    for (;;) {
        if (*position == head)
            return TB_NOTHING;
        uint64_t there = head - *position, offset = *position % end->data_bytes;
        if (there > end->data_bytes || *position % 8 || there < TB_DIRECT_FRONT)
            return TB_RUBBISH;
        uint32_t size, mark;
        memcpy(&size, end->data + offset, 4);
        memcpy(&mark, end->data + offset + 4, 4);
        if (size < TB_DIRECT_FRONT || size % 8 || size > there || size > end->data_bytes - offset)
            return TB_RUBBISH;
        if (mark == TB_DIRECT_PAD) {
            if (offset + size != end->data_bytes)
                return TB_RUBBISH;
            *position += size;
            continue;
        }
        if (mark != TB_DIRECT_ENTRY || size < TB_DIRECT_FRONT + TB_DIRECT_HEADER)
            return TB_RUBBISH;
        uint32_t body_bytes, payload_bytes;
        const unsigned char *at = end->data + offset + TB_DIRECT_FRONT;
        memcpy(found->header, at, TB_DIRECT_HEADER);
        memcpy(&body_bytes, found->header + 20, 4);
        memcpy(&payload_bytes, found->header + 24, 4);
        if (tb_padded((uint64_t)TB_DIRECT_FRONT + TB_DIRECT_HEADER + body_bytes + payload_bytes) != size)
            return TB_RUBBISH;
        found->body = at + TB_DIRECT_HEADER;
        found->payload = found->body + body_bytes;
        found->body_bytes = body_bytes;
        found->payload_bytes = payload_bytes;
        found->behind = *position + size;
        return TB_FOUND;
    }
}

/* A reader's look at what is next for it. */
static inline int tb_reader_look(tb_end *end, tb_found *found, uint64_t *from)
{
    uint64_t word = atomic_load_explicit(&end->places[0]->taken, memory_order_acquire);
    if (word & 1)
        return TB_EJECTED;
    *from = word >> 1;
    uint64_t position = *from;
    return tb_look_at(end, &position, found);
}

/* A reader has copied what it has found; says whether it is the reader's. */
static inline int tb_reader_take(tb_end *end, uint64_t from, uint64_t behind)
{
    uint64_t expected = from << 1;
    return atomic_compare_exchange_strong(&end->places[0]->taken, &expected, behind << 1);
}

/* Whether a reader that has not been ejected has to look again before it sleeps. */
static inline int tb_reader_has(tb_end *end)
{
    uint64_t word = atomic_load_explicit(&end->places[0]->taken, memory_order_acquire);
    return !(word & 1) && (word >> 1) != (atomic_load_explicit(&end->ring->head, memory_order_acquire) >> 1);
}

static inline void tb_reader_sleeps(tb_end *end, int sleeps)
{
    atomic_store(&end->places[0]->sleeps, (uint32_t)sleeps);
    if (sleeps)
        atomic_thread_fence(memory_order_seq_cst);
}

/* The broker says how far it has read. */
static inline void tb_drained(tb_end *end, uint64_t position)
{
    end->position = position;
    atomic_store_explicit(&end->ring->drained, position, memory_order_release);
}

/* The broker closes the line: what is committed by now is all there will be. */
static inline uint64_t tb_close(tb_end *end)
{
    return atomic_fetch_or(&end->ring->head, 1) >> 1;
}

static inline int tb_is_closed(tb_end *end)
{
    return (int)(atomic_load_explicit(&end->ring->head, memory_order_acquire) & 1);
}

/* How far a reader is, and nothing else. */
static inline uint64_t tb_taken(tb_end *end, int reader)
{
    return atomic_load_explicit(&end->places[reader]->taken, memory_order_acquire);
}

/* The broker takes a reader's right to read away; how far it had come. */
static inline uint64_t tb_eject(tb_end *end, int reader)
{
    return atomic_fetch_or(&end->places[reader]->taken, 1) >> 1;
}

/* What a writer has committed that the broker has not read. */
static inline uint64_t tb_undrained(tb_end *end)
{
    return end->position - atomic_load_explicit(&end->ring->drained, memory_order_acquire);
}

/* The reader has let go of an entry. Returns 0; 1 if the broker waits to be told; -1 if there is no room to say so. */
static inline int tb_release(tb_releases *releases, uint64_t position)
{
    tb_place *place = releases->place;
    uint64_t count = releases->count;
    if (count - atomic_load_explicit(&place->collected, memory_order_acquire) >= TB_DIRECT_RELEASES)
        return -1;
    atomic_store_explicit(&place->let_go[count % TB_DIRECT_RELEASES], position, memory_order_relaxed);
    releases->count = ++count;
    atomic_store_explicit(&place->released, count, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t wanted = atomic_load_explicit(&place->wanted, memory_order_relaxed);
    return wanted && count >= wanted && atomic_exchange(&place->wanted, 0);
}

/* The reader is about to wait: whether the broker waits too, for what the reader has let go of. */
static inline int tb_release_due(tb_releases *releases)
{
    tb_place *place = releases->place;
    return atomic_load_explicit(&place->wanted, memory_order_relaxed)
        && releases->count != atomic_load_explicit(&place->collected, memory_order_acquire)
        && atomic_exchange(&place->wanted, 0);
}

/* How many entries the reader has let go of, as it says. */
static inline uint64_t tb_released(tb_releases *releases)
{
    return atomic_load_explicit(&releases->place->released, memory_order_acquire);
}

/* The next entry of which the broker learns that the reader has let go of it. */
static inline uint64_t tb_let_go(tb_releases *releases)
{
    return atomic_load_explicit(&releases->place->let_go[releases->count++ % TB_DIRECT_RELEASES], memory_order_relaxed);
}

/* The broker knows of as many as it has counted: the reader may write again where they were. */
static inline void tb_collected(tb_releases *releases)
{
    atomic_store_explicit(&releases->place->collected, releases->count, memory_order_release);
}

/* The broker waits until so many more have been let go of; says whether they have. */
static inline int tb_want(tb_releases *releases, uint64_t more)
{
    uint64_t wanted = releases->count + more;
    atomic_store_explicit(&releases->place->wanted, wanted, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    return tb_released(releases) - releases->count >= more;
}

/* The publisher's look at what a reader has let go of, beside the broker's: the next entry behind the `*count` that it has
   seen, or 0. Of entries that the reader may have written over meanwhile it hears from the broker. One that goes on and on
   writing there does not keep the publisher here. */
static inline uint64_t tb_see_let_go(tb_end *end, int reader, uint64_t *count)
{
    tb_place *place = end->places[reader];
    for (int tries = 0; tries < 8; tries++) {
        uint64_t released = atomic_load_explicit(&place->released, memory_order_acquire);
        if (*count == released)
            return 0;
        if (released - *count >= TB_DIRECT_RELEASES)
            *count = released - TB_DIRECT_RELEASES + 1;
        uint64_t position = atomic_load_explicit(&place->let_go[*count % TB_DIRECT_RELEASES], memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
        released = atomic_load_explicit(&place->released, memory_order_relaxed);
        if (released - *count < TB_DIRECT_RELEASES) {
            ++*count;
            return position;
        }
    }
    return 0;
}

/* How many entries all readers have let go of that the broker does not know of, as they say. */
static inline uint64_t tb_collectable(tb_end *end)
{
    uint64_t least = ~(uint64_t)0;
    for (int i = 0; i < end->readers; i++) {
        uint64_t collected = atomic_load_explicit(&end->places[i]->collected, memory_order_relaxed);
        uint64_t more = atomic_load_explicit(&end->places[i]->released, memory_order_relaxed) - collected;
        if (more < least)
            least = more;
    }
    return least > TB_DIRECT_RELEASES ? 0 : least;
}

#endif
