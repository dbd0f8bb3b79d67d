// SPDX-License-Identifier: MIT

#include "lowbit/lut4_quantize.h"

#include "check.h"
#include "floats.h"
#include "lut4_cuda.h"
#include "lut4_weight.h"
#include "parallel.h"

#include "lowbit/cpu.h"

#include <stdatomic.h>

static const char op[] = "lut4_quantize";

enum { PIECE = 1 << 14 }; // elements that one thread takes at a time: whole blocks

struct quantize {
    const lowbit_tensor *weight, *codebook, *packed, *absmax;
    size_t blocksize, elements;
    lowbit_lut4_quantize_ukernel *ukernel;
    struct lowbit_lut4_levels levels;
    atomic_size_t next;
};

static void find_levels(void *arg, size_t task) {
    struct quantize *c = arg;
    const float *codebook = c->codebook->data;
    float sorted[16];
    (void)task;
    for (uint8_t code = 0; code < 16; code++) { // by insertion: equal values keep their order
        size_t i = code;
        for (; i > 0 && sorted[i - 1] > codebook[code]; i--) {
            sorted[i] = sorted[i - 1];
            c->levels.code[i] = c->levels.code[i - 1];
        }
        sorted[i] = codebook[code];
        c->levels.code[i] = code;
    }
    for (size_t i = 0; i < 15; i++) {
        c->levels.midpoint[i] = 0.5f * sorted[i] + 0.5f * sorted[i + 1];
        if (sorted[i] == sorted[i + 1])
            c->levels.code[i + 1] = c->levels.code[i];
    }
}

static void quantize_pieces(void *arg, size_t task) {
    struct quantize *c = arg;
    (void)task;
    const size_t size = lowbit_float_size((enum lowbit_float)c->weight->dtype);
    for (size_t begin; (begin = PIECE * atomic_fetch_add(&c->next, 1)) < c->elements;)
        for (size_t i = begin; i < c->elements && i < begin + PIECE; i += c->blocksize) {
            const size_t n = c->elements - i < c->blocksize ? c->elements - i : c->blocksize;
            ((float *)c->absmax->data)[i / c->blocksize] =
                c->ukernel(n, (const char *)c->weight->data + i * size, &c->levels,
                           (uint8_t *)c->packed->data + i / 2);
        }
}

lowbit_status lowbit_lut4_quantize(const lowbit_tensor *weight, const lowbit_tensor *codebook,
                                   size_t blocksize, const lowbit_tensor *packed,
                                   const lowbit_tensor *absmax, const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    LOWBIT_TRY(
        lowbit_check_contiguous(op, "weight", weight, LOWBIT_FLOAT_DTYPES, LOWBIT_ANY, LOWBIT_ANY));
    LOWBIT_TRY(lowbit_lut4_check_codebook(op, "codebook", codebook, 16, executor));
    LOWBIT_TRY(lowbit_check_blocksize(op, blocksize));
    const size_t elements = weight->rows * weight->cols; // which lie in memory
    LOWBIT_TRY(
        lowbit_check_vector(op, "packed", packed, LOWBIT_UINT8_DTYPE, elements / 2 + elements % 2));
    LOWBIT_TRY(lowbit_check_vector(op, "absmax", absmax, LOWBIT_FLOAT32_DTYPE,
                                   elements / blocksize + (elements % blocksize != 0)));
    LOWBIT_ON_CUDA(executor, lowbit_lut4_quantize_cuda(op, weight, codebook, blocksize, packed,
                                                       absmax, executor->cuda_stream));
    struct quantize c = {
        .weight = weight,
        .codebook = codebook,
        .packed = packed,
        .absmax = absmax,
        .blocksize = blocksize,
        .elements = elements,
        .ukernel = lowbit_lut4_select_ukernels(lowbit_cpu_isa()).quantize[weight->dtype],
    };
    lowbit_parallel(executor, 1, find_levels, &c); // in the floating-point environment of a task
    const size_t pieces = elements / PIECE + 1;
    lowbit_parallel(executor, lowbit_task_count(executor, pieces, (double)elements * 0.5),
                    quantize_pieces, &c);
    return LOWBIT_OK;
}
