// SPDX-License-Identifier: MIT

#include "lowbit/blockwise_quantize.h"

#include "blockwise_codebook.h"
#include "blockwise_cuda.h"
#include "blockwise_dispatch.h"
#include "check.h"
#include "floats.h"
#include "parallel.h"

#include "lowbit/cpu.h"

#include <stdatomic.h>

static const char op[] = "blockwise_quantize";

struct quantize {
    const lowbit_tensor *x, *codebook, *q, *absmax;
    size_t blocksize;
    lowbit_blockwise_quantize_ukernel *blocks;
    struct lowbit_blockwise_encoder encoder;
    atomic_size_t next;
};

enum { ELEMENTS = 16384 }; // that one thread takes at a time: whole blocks of every size

static void prepare(void *arg, size_t task) {
    struct quantize *c = arg;
    (void)task;
    lowbit_blockwise_encoder_init(c->codebook->data, &c->encoder);
}

static void quantize_blocks(void *arg, size_t task) {
    struct quantize *c = arg;
    const size_t n = c->x->rows;
    (void)task;
    for (size_t i; (i = ELEMENTS * atomic_fetch_add(&c->next, 1)) < n;)
        c->blocks(n - i < ELEMENTS ? n - i : ELEMENTS, c->blocksize, lowbit_float_row(c->x, i),
                  &c->encoder, (uint8_t *)c->q->data + i,
                  (float *)c->absmax->data + i / c->blocksize);
}

lowbit_status lowbit_blockwise_quantize(const lowbit_tensor *x, const lowbit_tensor *codebook,
                                        size_t blocksize, const lowbit_tensor *q,
                                        const lowbit_tensor *absmax,
                                        const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    LOWBIT_TRY(lowbit_check_blocksize(op, blocksize));
    LOWBIT_TRY(lowbit_check_vector(op, "x", x, LOWBIT_FLOAT_DTYPES, LOWBIT_ANY));
    LOWBIT_TRY(lowbit_check_codebook256(op, "codebook", codebook, executor));
    LOWBIT_TRY(lowbit_check_vector(op, "q", q, LOWBIT_UINT8_DTYPE, x->rows));
    LOWBIT_TRY(lowbit_check_vector(op, "absmax", absmax, LOWBIT_FLOAT32_DTYPE,
                                   (x->rows + blocksize - 1) / blocksize));
    LOWBIT_ON_CUDA(executor, lowbit_blockwise_quantize_cuda(op, x, codebook, blocksize, q, absmax,
                                                            executor->cuda_stream));
    struct quantize c;
    c.x = x;
    c.codebook = codebook;
    c.q = q;
    c.absmax = absmax;
    c.blocksize = blocksize;
    c.blocks = lowbit_blockwise_select_ukernels(lowbit_cpu_isa()).quantize[x->dtype];
    atomic_init(&c.next, 0);
    lowbit_parallel(executor, 1, prepare, &c);
    const size_t pieces = (x->rows + ELEMENTS - 1) / ELEMENTS;
    lowbit_parallel(executor, lowbit_task_count(executor, pieces, (double)x->rows * 0.5),
                    quantize_blocks, &c);
    return LOWBIT_OK;
}
