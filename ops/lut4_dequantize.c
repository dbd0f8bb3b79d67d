// SPDX-License-Identifier: MIT

#include "lowbit/lut4_dequantize.h"

#include "check.h"
#include "floats.h"
#include "lut4_cuda.h"
#include "lut4_weight.h"
#include "parallel.h"

#include "lowbit/cpu.h"

#include <stdatomic.h>

static const char op[] = "lut4_dequantize";

enum { PIECE = 1 << 13, RUN = 1 << 10 }; // elements that a thread takes, and that a kernel does

struct dequantize {
    const lowbit_lut4_weight *weight;
    const lowbit_tensor *out;
    size_t elements;
    struct lowbit_lut4_ukernels ukernels;
    atomic_size_t next;
};

static void dequantize_pieces(void *arg, size_t task) {
    struct dequantize *c = arg;
    (void)task;
    const size_t size = lowbit_float_size((enum lowbit_float)c->out->dtype);
    float scales[RUN / 32 + 2];
    for (size_t begin; (begin = PIECE * atomic_fetch_add(&c->next, 1)) < c->elements;)
        for (size_t i = begin; i < c->elements && i < begin + PIECE; i += RUN)
            lowbit_lut4_read(c->weight, &c->ukernels, c->out->dtype, i,
                             c->elements - i < RUN ? c->elements - i : RUN, scales,
                             (char *)c->out->data + i * size);
}

lowbit_status lowbit_lut4_dequantize(const lowbit_lut4_weight *weight, const lowbit_tensor *out,
                                     const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    if (!weight)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: weight is null", op);
    LOWBIT_TRY(
        lowbit_check_contiguous(op, "out", out, LOWBIT_FLOAT_DTYPES, LOWBIT_ANY, LOWBIT_ANY));
    LOWBIT_TRY(lowbit_lut4_check_weight(op, weight, out->rows, out->cols, executor));
    LOWBIT_ON_CUDA(executor, lowbit_lut4_dequantize_cuda(op, weight, out, executor->cuda_stream));
    struct dequantize c = {
        .weight = weight,
        .out = out,
        .elements = out->rows * out->cols,
        .ukernels = lowbit_lut4_select_ukernels(lowbit_cpu_isa()),
    };
    lowbit_parallel(executor,
                    lowbit_task_count(executor, c.elements / PIECE + 1, (double)c.elements * 0.2),
                    dequantize_pieces, &c);
    return LOWBIT_OK;
}
