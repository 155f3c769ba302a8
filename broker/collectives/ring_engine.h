/* One position's part in the operations of ranks on several hosts, which are connected by stream sockets, each with each:
   what engines say to one another, and why they agree.

   A link is one socket or several, its lanes. On every lane come words, each a head and perhaps a body (little-endian):

     0                4          6        8         12        16            24          32          40
     | magic, version | kind u16 | code u16 | bytes u32 | step u32 | sequence u64 | first u64 | second u64 | body ...

     MEET    begins an operation: first, the bytes of the claim; body, the claim, and a short array behind it
     PIECE   of the data: step and first, its place in the schedule; body, the bytes. On any lane, all others on lane 0
     READY   this position has the whole result
     HURRY   a deadline is over: second, whose time-out; or positions have given up: code, first. Whoever is alive answers with the same
     ABORT   the operation has failed: code, an outcome; first, the positions; second, the time-out

   How an operation goes, seen from one position:

     gather  MEET to all; wait for the MEET of all; compare the claims
     move    send and receive pieces, as the schedule says (ring_engine_steps.c); short arrays came with MEET
     agree   READY to all, once the whole result is here; wait for the READY of all

   The verdict. A position that has not said READY may fail the operation by itself, and says ABORT to all. One that has said
   READY has promised: it never fails it by itself. It commits when it has READY from all.

     Nobody commits what another one fails: who commits has READY from all, and who has said READY fails an operation only
     when it hears ABORT, or sees that another one has gone on without READY; that one has not said READY, and never will, so
     nobody has READY from all. Everybody who fails says ABORT itself, so one of them who dies half-way does no harm.

     A position that has promised and loses a link whose other end has not said READY waits a moment for an ABORT; then it is
     UNDECIDED, and so it is when a deadline is over and somebody is silent. It cannot know more: the one that is lost may have
     said READY to all others and they may have committed. Somebody else has to ask all that are left whether one of them has
     committed, after their engines have ended, and may say `committed` only if one has; who does not answer must not go on.
     An engine that is UNDECIDED begins no other operation; the array is as it was, and the result is kept.

     A process that dies has said READY to all before it commits: words that were handed over arrive, unless its host dies
     too. So a killed process leaves others UNDECIDED only if it was killed between its first READY and its last, or
     if all the others had promised and it had not.

   A deadline. While some have not come, it names them, at once. Later it says HURRY to all, and after a moment names those
   from whom nothing came since; a deadline is over for all when it is over for one. After a failure the links go on: who is behind
   drops what belongs to operations before its own, and leaves on the lane what belongs to later ones. A piece
   that is under way when its operation fails is filled up with zeros. Towards one that does not read, the
   words of one operation replace those of the last, but for some ABORT: it sees from their sequence at least that the last
   one has failed.

   Nothing that comes is trusted: a head that does not fit the plan is the end of the engine, and what is kept is bounded by the plan,
   by two buffers for each lane and by one MEET for each position. */
#ifndef TENSORBUS_RING_ENGINE_H
#define TENSORBUS_RING_ENGINE_H

#include "turns.h"
#include "undo.h"

enum {
    TB_LINK_MAGIC = 0x01524254, /* "TBR", version 1 */
    TB_LANES_MAX = 16,          /* Of one link. */
    TB_PIECE_BYTES = 256 << 10,
    TB_AHEAD_BYTES = 8 << 10,
    TB_SHORTS_BYTES = 128 << 10, /* Arrays of all positions that are no more travel with the claims. */
    TB_WORDS_BYTES = 3 << 10,    /* Of some ABORT, and what is said in one operation but MEET and pieces. */
    TB_STEPS_MAX = 2 * TB_POSITIONS_MAX,
    TB_LINK_RECORDS = 4,
    TB_LINK_LOG_ENTRIES = 64,
};

/* How far an operation is. */
typedef enum { TB_GATHERING, TB_MOVING, TB_AGREEING } tb_phase;

typedef enum { TB_MEET = 1, TB_PIECE, TB_READY, TB_HURRY, TB_ABORT } tb_kind_of_word;

typedef struct {
    uint32_t magic;
    uint16_t kind, code;
    uint32_t bytes, step;
    uint64_t sequence, first, second;
} tb_head;

_Static_assert(sizeof(tb_head) == 40, "a head has no gaps");

/* What becomes of the word whose head has come. */
typedef enum { TB_UNJUDGED, TB_TAKE, TB_SKIP, TB_HOLD } tb_fate;

typedef struct {
    int file, peer, number;       /* Which of the lanes to which position. */
    int readable, writable, hung; /* As far as is known: epoll tells of changes. */

    tb_head head; /* What comes. */
    tb_fate fate;
    size_t head_bytes, body_bytes; /* That have come of it. */
    size_t reduced;                /* Of the body. */
    unsigned char *ahead, *stage;  /* What was read beyond it; a piece that is to be reduced. */
    size_t ahead_from, ahead_to;
    int step_in;     /* The piece that comes next, or comes. */
    size_t piece_in;

    tb_head out; /* The piece that goes, if any; without a body it is filled up. */
    const unsigned char *out_body;
    size_t out_sent;
    int out_busy;
    int step_out; /* The piece that goes next. */
    size_t piece_out;
} tb_lane;

typedef struct {
    tb_lane *lanes;
    int count;
    int met, ready, hurried, heard; /* In this operation; heard: since the deadline. */
    int gone;                       /* For ever. */
    uint32_t claim_bytes, row_bytes;
    unsigned char *meet;   /* Claim and short array. */
    unsigned char *outbox; /* One word under way, which may be a MEET, and the words of one operation. */
    size_t out_word, out_from, out_to; /* Where the oldest word begins, what is to be sent. */
} tb_peer;

/* A send and a receive, of stretches of the array. */
typedef struct {
    int to, from; /* -1: nobody. */
    size_t send_at, send_bytes, receive_at, receive_bytes;
    int given;       /* What is sent is of the array that this position contributes. */
    int needs;       /* A piece is sent when the same piece of that step has come; -1: it is there. */
    int follows;     /* Nothing is sent before all of that step has come; -1: before nothing. */
    int awaits;      /* What comes is added to what the same piece of that step brings; -1: to what is there. */
    size_t added;    /* Pieces, when it awaits some. */
    int reduces;     /* Whether what comes is added to what is there. */
    int closes;      /* Whether that is the whole sum. */
    int keeps;       /* Whether what it changes is still as it was before. */
    size_t kept;     /* Pieces that are remembered. */
    size_t spare_at; /* In order, or awaiting: where what comes waits. */
} tb_step;

/* What is kept of an operation for who tells the broker of it (ring_engine_log.c). */
typedef struct {
    _Atomic uint64_t sequence; /* 0 while the entry is being written. */
    _Atomic int status;        /* What follows it is set when it is not PENDING. */
    uint64_t ended_ns, positions, timeout_ns;
    uint64_t began_ns; /* When its program asked for it. */
    uint32_t claim_bytes;
    unsigned char claim[TB_CLAIM_BYTES];
} tb_link_entry;

typedef struct {
    uint64_t kept;           /* Entries that stay, of all that were written. */
    _Atomic int thinning;    /* So many bits say which stay; 0: all. */
    _Atomic uint64_t begun;  /* The last operation. */
    _Atomic uint64_t seen;   /* The last one that took so long that somebody looked where it was; of that: */
    _Atomic int phase;
    _Atomic uint64_t waits_for, received_bytes;
    tb_link_entry entries[TB_LINK_LOG_ENTRIES];
} tb_link_log;

struct tb_ring;

typedef struct {
    struct tb_ring *ring;
    tb_task *task;
    uint64_t sequence, deadline_ns, pulse_ns, now_ns;
    uint64_t received_bytes;
    int is_short;    /* The arrays came with MEET. */
    int gathering;   /* Not all have come. */
    int mismatched;  /* Bits: 2, claims differ; 1, the deadline is soon for that. */
    uint64_t wanted; /* Somebody saw a mismatch of these positions' claims. */
    int promised;    /* It has said READY. */
    int stirred;     /* There may be more to do. */
    int late;        /* The deadline was seen to be over. */
    uint64_t closing_ns, closing_positions, closing_timeout_ns; /* After a deadline, or the loss of a link; 0 before. */
    int doubt;                               /* What it is then if nobody commits. */
    int verdict;                             /* It has failed; nobody commits. */
    uint64_t positions, timeout_ns;

    tb_step steps[TB_STEPS_MAX];
    int count, in_order, applied;
    int at_once;   /* So many first steps bring what is added all at once. */
    size_t summed; /* Pieces of that. */
    size_t piece_bytes, spare_bytes;
    unsigned char *base;      /* Where the array becomes the result. */
    const unsigned char *own; /* The array that is contributed. */
} tb_exchange;

typedef struct tb_ring {
    tb_turns turns;
    int position, positions;
    int hosts[TB_POSITIONS_MAX]; /* Of each position, the number of its host, in the order of their first positions. */
    tb_peer *peers;
    tb_lane *lanes;
    int lane_count;
    int epoll, bell;
    _Atomic int over; /* No operation begins any more. */
    uint64_t sequence;
    _Atomic uint64_t committed; /* The last operation that was. */
    tb_undo undo, spare;
    unsigned char *junk, *words; /* `words` has what positions say, and are told. */
    size_t short_bytes, meet_bytes, outbox_bytes;
    tb_record *records;
    uint64_t spin_ns; /* How long to look without sleeping, of short operations. */
    int calm;         /* Waits to come that only sleep, because a program wants the processor. */
    tb_exchange exchange;
    tb_link_log log;
} tb_ring;

/* An engine of connected sockets, `counts[p]` for position p, one behind the other; from now on they are its own. NULL with
   an errno. `told` is as for tb_turns_begin. */
tb_ring *tb_ring_new(const int *files, const int *counts, int positions, int position, int told);

/* No operation begins any more; the one that is under way ends, and the others' with it. Any thread may call. */
void tb_ring_end(tb_ring *ring);

/* How long an array may be that travels with the claim, so that an operation takes two one-way times. Each of n positions then
   sends n - 1 arrays, where halving sends 2 (n - 1) / n of one in 2 log2(n) steps: the more positions, the sooner bytes cost more
   than steps (docs/decisions/0037-short-arrays.md). */
static inline size_t tb_short_bytes(int positions)
{
    size_t share = TB_SHORTS_BYTES / positions;
    return share > TB_INLINE_BYTES ? share : TB_INLINE_BYTES;
}

/* Ends, and returns when the thread has ended. */
void tb_ring_close(tb_ring *ring);

/* Frees a closed engine that nobody is in. */
void tb_ring_free(tb_ring *ring);

/* Gives an UNDECIDED operation the others' verdict; returns its status. */
int tb_ring_settle(tb_ring *ring, tb_task *task, int committed);

/* What another thread may ask at any time. */
typedef struct {
    uint64_t begun, seen, waits_for, received_bytes;
    int phase;
} tb_link_standing;

typedef struct {
    uint64_t sequence, began_ns, ended_ns, positions, timeout_ns;
    int status;
    uint32_t claim_bytes;
    unsigned char claim[TB_CLAIM_BYTES];
} tb_link_told;

/* From now on a share of 1 / 2^thinning of the operations stays when they have ended. */
void tb_link_log_thin(tb_link_log *log, int thinning);

void tb_link_log_standing(tb_link_log *log, tb_link_standing *standing);

/* Copies the entry in a place; 0 if there is none, or it is being written. */
int tb_link_log_read(tb_link_log *log, int place, tb_link_told *told);

#endif
