// SPDX-License-Identifier: MIT

#include "lowbit/blockwise_dequantize.h"

#include "blockwise_codebook.h"
#include "blockwise_cuda.h"
#include "blockwise_dispatch.h"
#include "check.h"
#include "floats.h"
#include "parallel.h"

#include "lowbit/cpu.h"

#include <stdatomic.h>

static const char op[] = "blockwise_dequantize";

struct dequantize {
    const lowbit_tensor *q, *absmax, *out;
    size_t blocksize;
    lowbit_blockwise_dequantize_ukernel *blocks;
    struct lowbit_blockwise_decoder decoder;
    atomic_size_t next;
};

enum { ELEMENTS = 16384 }; // that one thread takes at a time: whole blocks of every size

static void dequantize_blocks(void *arg, size_t task) {
    struct dequantize *c = arg;
    const size_t n = c->q->rows;
    (void)task;
    for (size_t i; (i = ELEMENTS * atomic_fetch_add(&c->next, 1)) < n;)
        c->blocks(n - i < ELEMENTS ? n - i : ELEMENTS, c->blocksize, (uint8_t *)c->q->data + i,
                  (float *)c->absmax->data + i / c->blocksize, &c->decoder,
                  lowbit_float_row(c->out, i));
}

lowbit_status lowbit_blockwise_dequantize(const lowbit_tensor *q, const lowbit_tensor *absmax,
                                          const lowbit_tensor *codebook, size_t blocksize,
                                          const lowbit_tensor *out,
                                          const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    LOWBIT_TRY(lowbit_check_blocksize(op, blocksize));
    LOWBIT_TRY(lowbit_check_vector(op, "q", q, LOWBIT_UINT8_DTYPE, LOWBIT_ANY));
    LOWBIT_TRY(lowbit_check_vector(op, "absmax", absmax, LOWBIT_FLOAT32_DTYPE,
                                   (q->rows + blocksize - 1) / blocksize));
    LOWBIT_TRY(lowbit_check_codebook256(op, "codebook", codebook, executor));
    LOWBIT_TRY(lowbit_check_vector(op, "out", out, LOWBIT_FLOAT_DTYPES, q->rows));
    LOWBIT_ON_CUDA(executor, lowbit_blockwise_dequantize_cuda(op, q, absmax, codebook, blocksize,
                                                              out, executor->cuda_stream));
    struct dequantize c;
    c.q = q;
    c.absmax = absmax;
    c.out = out;
    c.blocksize = blocksize;
    lowbit_blockwise_decoder_init(codebook->data, &c.decoder);
    atomic_init(&c.next, 0);
    c.blocks = lowbit_blockwise_select_ukernels(lowbit_cpu_isa()).dequantize[out->dtype];
    const size_t pieces = (q->rows + ELEMENTS - 1) / ELEMENTS;
    lowbit_parallel(executor, lowbit_task_count(executor, pieces, (double)q->rows * 0.25),
                    dequantize_blocks, &c);
    return LOWBIT_OK;
}
