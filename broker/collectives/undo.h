/* Memory for what an array held before an operation began to change it. */
#ifndef TENSORBUS_UNDO_H
#define TENSORBUS_UNDO_H

#include <stddef.h>

typedef struct {
    unsigned char *memory;
    size_t bytes;
} tb_undo;

/* Sees to it that there is so much; 0 when there is no memory. */
int tb_undo_reserve(tb_undo *undo, size_t bytes);

/* Copies a stretch of an array to the same place here, past the processor's caches, and back. */
void tb_undo_keep(tb_undo *undo, const void *array, size_t start, size_t bytes);
void tb_undo_restore(const tb_undo *undo, void *array, size_t start, size_t bytes);

/* Exchanges the two. */
void tb_undo_swap(tb_undo *undo, void *array, size_t start, size_t bytes);

/* Frees what is too much to keep until the next operation, and all of it. */
void tb_undo_trim(tb_undo *undo);
void tb_undo_free(tb_undo *undo);

#endif
