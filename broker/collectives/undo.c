/* Memory for what an array held; undo.h says what each call does. */
#define _GNU_SOURCE
#include "undo.h"

#include <string.h>
#include <sys/mman.h>

#include "broker/copy_bytes.h"
#include "broker/transport/streaming_copy.h"

enum { KEPT_BYTES = 256 << 20, SWAP_BYTES = 4096 };

int tb_undo_reserve(tb_undo *undo, size_t bytes)
{
    if (undo->bytes >= bytes)
        return 1;
    tb_undo_free(undo);
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 0;
    undo->memory = memory;
    undo->bytes = bytes;
    madvise(memory, bytes, MADV_HUGEPAGE);
    return 1;
}

void tb_undo_keep(tb_undo *undo, const void *array, size_t start, size_t bytes)
{
    streaming_copy(undo->memory + start, (const unsigned char *)array + start, bytes);
}

void tb_undo_restore(const tb_undo *undo, void *array, size_t start, size_t bytes)
{
    copy_bytes((unsigned char *)array + start, undo->memory + start, bytes);
}

void tb_undo_swap(tb_undo *undo, void *array, size_t start, size_t bytes)
{
    unsigned char between[SWAP_BYTES], *there = (unsigned char *)array + start, *here = undo->memory + start;
    for (size_t size; bytes; there += size, here += size, bytes -= size) {
        size = bytes < sizeof between ? bytes : sizeof between;
        memcpy(between, there, size);
        memcpy(there, here, size);
        memcpy(here, between, size);
    }
}

void tb_undo_trim(tb_undo *undo)
{
    if (undo->bytes > KEPT_BYTES)
        tb_undo_free(undo);
}

void tb_undo_free(tb_undo *undo)
{
    if (undo->memory)
        munmap(undo->memory, undo->bytes);
    undo->memory = NULL;
    undo->bytes = 0;
}
