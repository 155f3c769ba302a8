/* Runs kernels of kernels.h over what comes in, for a processor that may be an emulated one.

   A request on standard input: seven int32 (op, or -1 to encode and -2 to decode; dtype; count; elements; divisor; bytes of
   a source; bytes of the result), then the sources. The result goes to standard output; of encoding, behind it, what was
   lost. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/collectives/kernels.h"

enum { ENCODE = -1, DECODE = -2 };

static void *read_bytes(size_t bytes)
{
    void *memory = malloc(bytes + 1);
    if (!memory || fread(memory, 1, bytes, stdin) != bytes)
        exit(2);
    return memory;
}

int main(void)
{
    int32_t request[7];
    fputs(tb_kernels_level(), stderr);
    while (fread(request, sizeof request, 1, stdin) == 1) {
        int op = request[0], dtype = request[1], count = request[2], elements = request[3], divisor = request[4];
        size_t source_bytes = request[5], result_bytes = request[6];
        const void *sources[64];
        for (int source = 0; source < count; source++)
            sources[source] = read_bytes(source_bytes);
        void *result = calloc(1, result_bytes + 1);
        if (op == ENCODE)
            tb_codec_for(dtype)->encode(result, sources[0], sources[1], (void *)sources[1], elements);
        else if (op == DECODE)
            tb_codec_for(dtype)->decode(result, sources[0], elements);
        else
            tb_reduce_kernel(op, dtype)(result, sources, count, elements, divisor, 0, NULL);
        fwrite(result, 1, result_bytes, stdout);
        if (op == ENCODE)
            fwrite(sources[1], 1, source_bytes, stdout);
        for (int source = 0; source < count; source++)
            free((void *)sources[source]);
        free(result);
    }
    return 0;
}
