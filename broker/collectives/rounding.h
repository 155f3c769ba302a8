/* The processor's control word of floating point, of the thread that reduces: the result has the same bits on every position,
   also where a program's thread flushes small numbers to zero or rounds otherwise. */
#ifndef TENSORBUS_ROUNDING_H
#define TENSORBUS_ROUNDING_H

/* Rounds as usual from now on; returns what goes back to how it was. */
static inline unsigned tb_round_as_usual(void)
{
#if defined(__x86_64__)
    const unsigned usual = 0x1f80;
    unsigned before = __builtin_ia32_stmxcsr();
    if (before != usual)
        __builtin_ia32_ldmxcsr(usual);
    return before;
#elif defined(__aarch64__)
    unsigned before = __builtin_aarch64_get_fpcr();
    if (before)
        __builtin_aarch64_set_fpcr(0);
    return before;
#else
    return 0;
#endif
}

static inline void tb_round_as_before(unsigned before)
{
#if defined(__x86_64__)
    if (before != 0x1f80)
        __builtin_ia32_ldmxcsr(before);
#elif defined(__aarch64__)
    if (before)
        __builtin_aarch64_set_fpcr(before);
#else
    (void)before;
#endif
}

#endif
