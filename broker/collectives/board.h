/* The board: memory in which the ranks of one host carry out a group's collectives, without their broker.

   The broker makes one for a generation whose members all share memory with it, and passes it to them. It writes the
   header, and later `state`. To tell people who is late it reads counters, logs, verdicts and records (board_log.c), and
   believes nothing of it: whatever members write there, nothing is followed that they could have written. Version 6:

     0          +------------------------------------------------------------------------+
                | magic u64 | version u32 | positions u32 | bytes u64                    |
     128        | state u32    OPEN, DRAINING, OVER: written by the broker, or a leaver  |
     256        | verdict and order 0 .. 63   one line each; operation s has those of     |
                |                    s % 64                                               |
     16384      +------------------------------------------------------------------------+
                | slot of position 0                                                     |
                |   arrived, left, staged, reduced, collected, offered, calls u64:        |
                |   written by it alone                                                   |
                |   claimed u64: of its part of arrays that lie in memory which all map,   |
                |   the pieces that somebody reduces; written by all (engine_direct.c)     |
                |   bell u32, sleepers u32: the futex on which others wait for it         |
                |   bound u32: which processor is the only one that it may use            |
                |   places         of operations with s % 2: where in memory that all map its  |
                |                   arrays lie; 0 is elsewhere (engine_direct.c)         |
                |   row 0, row 1   claim (512) and small payload (4096) of operations     |
                |                  with s % 2                                            |
                |   record 0 .. 3  failures that it was the first to see, with all claims |
                |   log            begun; when it came to operation s, and its claim, in   |
                |                  entry s % 32: for the broker, no member reads it       |
                | slot of position 1 ...                                                 |
                +------------------------------------------------------------------------+
                | stage of position 0: chunks of 512 KiB, written by it alone and read by  |
                |   all, in pages that are there once they are written to                 |
                | stage of position 1 ...                                                |
     1 GiB, or  +------------------------------------------------------------------------+
     a little less

   Operations are numbered from 1, the same on all positions. Which call of the program each of them is, engine_turn.c
   says. A counter holds s << 24 | chunks, so that it only grows, also over operations that failed half-way; `claimed`
   holds s << 24 | pieces, `arrived` and `left` s alone. Who writes where, and when:

     row, places    from the moment in which all have left s - 2
     stage          from the moment in which all have left s - 1; of arrays that are longer than a stage a chunk's place
                    again when all have collected what was in it
     claimed        by compare-and-swap, one piece more each time, once all have arrived
     verdict        once for each s, by compare-and-swap: COMMITTED by whoever sees that all there is to know is on the
                    board, something else by whoever sees a failure. Everybody obeys it, whatever it has seen itself,
                    so an operation succeeds on all positions or on none.

   A position that is behind reads what belongs to a later operation only after that one's verdict has failed the one
   that it is in, and then it throws away what it has read. */
#ifndef TENSORBUS_BOARD_H
#define TENSORBUS_BOARD_H

#include "turns.h"

enum {
    TB_VERSION = 6,
    TB_VERDICTS = 64,
    TB_ROWS = 2,
    TB_RECORDS = 4,
    TB_LOG_ENTRIES = 32,
    TB_LOG_CLAIM_BYTES = 228,
    TB_CHUNK_BYTES = 512 << 10,
    TB_CHUNK_BITS = 24,
    TB_PLACES = 4, /* For chunks of an array that is longer than a stage: enough for the others to be behind or ahead. */
};
#define TB_MAGIC 0x0a314452414f4254ull /* "TBOARD1\n" */

enum tb_state { TB_OPEN = 0, TB_DRAINING = 1, TB_GONE = 2 };

typedef struct {
    _Alignas(TB_LINE_BYTES) tb_claim claim;
    _Alignas(TB_LINE_BYTES) unsigned char payload[TB_INLINE_BYTES];
} tb_row;

/* What a position tells the broker of an operation. */
typedef struct {
    _Alignas(TB_LINE_BYTES) _Atomic uint64_t sequence; /* 0 while the entry is being written. */
    uint64_t began_ns;                                 /* When its program asked for it, on CLOCK_MONOTONIC. */
    uint64_t left_ns;                                  /* When it was done; 0 of a small one, which asks no clock. */
    uint32_t claim_bytes;                              /* More than there is room for: the claim is not here. */
    unsigned char claim[TB_LOG_CLAIM_BYTES];
} tb_entry;

typedef struct {
    _Alignas(TB_LINE_BYTES) _Atomic uint64_t begun;
    tb_entry entries[TB_LOG_ENTRIES];
} tb_log;

typedef struct {
    _Alignas(TB_LINE_BYTES) _Atomic uint64_t arrived;
    _Atomic uint64_t left;
    _Atomic uint64_t staged;
    _Atomic uint64_t reduced;
    _Atomic uint64_t collected;
    _Atomic uint64_t offered;  /* Calls that had been made when the present operation was chosen. */
    uint64_t calls[TB_ROWS];   /* Which call operation s is, in s % 2. */
    _Alignas(TB_LINE_BYTES) _Atomic uint64_t claimed; /* On a line of its own: all write to it. */
    _Alignas(TB_LINE_BYTES) _Atomic uint32_t bell;
    _Atomic uint32_t sleepers;
    _Atomic uint32_t bound;      /* The number of the only processor that it may use, and 1; 0 when there are more. */
    uint64_t places[TB_ROWS][2]; /* Of the source and the target. */
    tb_row rows[TB_ROWS];
    tb_record records[TB_RECORDS];
    tb_log log;
} tb_slot;

typedef struct {
    _Alignas(TB_LINE_BYTES) uint64_t magic;
    uint32_t version;
    uint32_t positions;
    uint64_t bytes;
    _Alignas(TB_LINE_BYTES) _Atomic uint32_t state;
    struct {
        _Alignas(TB_LINE_BYTES) _Atomic uint64_t word;
        _Atomic uint64_t order; /* Which call it is; see engine_turn.c. */
    } verdicts[TB_VERDICTS];
} tb_board;

/* Which of a slot's counters. */
typedef enum { TB_ARRIVED, TB_LEFT, TB_STAGED, TB_REDUCED, TB_COLLECTED } tb_counter;

/* Bytes of a board with such stages, 0: as long as there is room for; 0 for a number of positions that cannot be. */
size_t tb_board_bytes(int positions, size_t stage_bytes);

/* And of the stages of a board; 0 for one without room. */
size_t tb_stage_bytes(size_t board_bytes, int positions);

/* Makes a board of memory that is all zeros. */
void tb_board_format(void *memory, size_t bytes, int positions);

/* Whether memory of so many bytes holds a board of this version and so many positions. */
int tb_board_fits(const void *memory, size_t bytes, int positions);

/* Ends a board: DRAINING ends the operations to which not all positions have come, GONE all that have no verdict. */
void tb_board_end(void *memory, int positions, int state);

tb_slot *tb_slot_of(tb_board *board, int position);
unsigned char *tb_stage_of(tb_board *board, int positions, int position, size_t stage_bytes);

static inline _Atomic uint64_t *tb_counter_of(tb_slot *slot, tb_counter counter)
{
    return &slot->arrived + counter;
}

/* Sets an own counter and wakes who waits for it. */
void tb_publish(tb_slot *own, tb_counter counter, uint64_t value);

/* Wakes everybody, to look at the verdict and the state. */
void tb_ring_all(tb_board *board, int positions);

/* Sleeps until a counter of a slot has reached a value, the slot's owner publishes something, everybody is woken, or
   the time is over. `changed` is asked once it is certain that no later change can be missed. */
void tb_park(tb_slot *slot, tb_counter counter, uint64_t value, uint64_t timeout_ns, int (*changed)(void *), void *of);

/* The log (board_log.c). A position writes its own. */
void tb_log_begin(tb_slot *own, uint64_t sequence, uint64_t began_ns, const void *claim, uint32_t claim_bytes);
void tb_log_end(tb_slot *own, uint64_t sequence);

/* What the broker reads. Every value is some member's word, and may be rubbish; positions are the caller's own. */
typedef struct {
    uint64_t begun, arrived, left, staged, reduced, collected;
} tb_standing;

void tb_read_standing(const void *memory, int position, tb_standing *standing);

/* Copies the entry of an operation; 0 if there is none, or it is being written. */
int tb_read_entry(const void *memory, int position, uint64_t sequence, tb_entry *entry);

/* The newest verdict in the place of an operation: sequence << 16 | author << 8 | code. */
uint64_t tb_read_verdict(const void *memory, uint64_t sequence);

/* The record of a failure that a position was the first to see; NULL if there is none. It can change at any time. */
const tb_record *tb_read_record(const void *memory, int author, uint64_t sequence);

#endif
