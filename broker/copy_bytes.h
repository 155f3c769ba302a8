/* memcpy(3) takes the processor's own instruction for copies (rep movsb) from some 2 KiB to some 512 KiB. On AMD's Zen 3 and
   4 that copies a byte at a time where the target lies 1 to 31 bytes after the source, whole pages aside. That is no rare
   case: a stage begins with a page, and a numpy array of 128 KiB or more 16 bytes after the beginning of one.
   Shorter copies go without the instruction (docs/decisions/0067; glibc's bug 30994). */
#ifndef TENSORBUS_COPY_BYTES_H
#define TENSORBUS_COPY_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TB_PAGE_BYTES = 4096, TB_SLOW_BYTES = 31, TB_STEP_BYTES = 1024 };

/* As memcpy. */
static inline void copy_bytes(void *to, const void *from, size_t size)
{
    size_t after = ((uintptr_t)to - (uintptr_t)from) % TB_PAGE_BYTES;
    size_t step = after - 1 < TB_SLOW_BYTES ? TB_STEP_BYTES : size;
    for (size_t done = 0; done < size; done += step) {
        if (step > size - done)
            step = size - done;
        memcpy((unsigned char *)to + done, (const unsigned char *)from + done, step);
    }
}

#endif
