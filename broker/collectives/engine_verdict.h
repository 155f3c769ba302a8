/* The word in which an operation's verdict stands: sequence | author | code. The first position that has something to say
   writes it, and all obey. */
#ifndef TENSORBUS_VERDICT_H
#define TENSORBUS_VERDICT_H

#include "engine_operation.h"

enum {
    TB_CODE_BITS = 8,
    TB_AUTHOR_BITS = 8,
};

static inline _Atomic uint64_t *tb_verdict_of(const tb_operation *operation)
{
    return &operation->engine->board->verdicts[operation->sequence % TB_VERDICTS].word;
}

static inline int tb_is_decided(const tb_operation *operation, uint64_t word)
{
    return word >> (TB_CODE_BITS + TB_AUTHOR_BITS) >= operation->sequence;
}

static inline int tb_is_committed(const tb_operation *operation, uint64_t word)
{
    return word >> (TB_CODE_BITS + TB_AUTHOR_BITS) == operation->sequence && (word & 0xff) == TB_COMMITTED;
}

/* What a verdict means for this position: 0 when the operation goes on to its end, else how it has failed. */
int tb_obey(tb_operation *operation, uint64_t word);

/* Gives the verdict, unless there is one; then obeys it. */
int tb_decide(tb_operation *operation, int code, uint64_t positions);

#endif
