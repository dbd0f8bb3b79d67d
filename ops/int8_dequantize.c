// SPDX-License-Identifier: MIT

#include "lowbit/int8_dequantize.h"

#include "check.h"
#include "floats.h"
#include "int8_cuda.h"
#include "int8_dispatch.h"
#include "parallel.h"

#include "lowbit/cpu.h"

#include <stdatomic.h>

static const char op[] = "int8_dequantize";

struct dequantize {
    const lowbit_tensor *q, *absmax, *offset, *out;
    lowbit_int8_dequantize_ukernel *row;
    atomic_size_t next;
};

enum { ROWS = 16 }; // rows that one thread takes at a time

static void dequantize_rows(void *arg, size_t task) {
    struct dequantize *c = arg;
    (void)task;
    for (size_t row0; (row0 = ROWS * atomic_fetch_add(&c->next, 1)) < c->q->rows;)
        for (size_t row = row0; row < c->q->rows && row < row0 + ROWS; row++) {
            float s, offset;
            lowbit_int8_read_scales(c->absmax, c->offset, row, 1, &s, &offset);
            c->row(c->q->cols, (const int8_t *)c->q->data + row * c->q->stride, s,
                   c->offset ? &offset : NULL, lowbit_float_row(c->out, row));
        }
}

lowbit_status lowbit_int8_dequantize(const lowbit_tensor *q, const lowbit_tensor *absmax,
                                     const lowbit_tensor *offset, const lowbit_tensor *out,
                                     const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    LOWBIT_TRY(lowbit_check_tensor(op, "q", q, LOWBIT_INT8_DTYPE, LOWBIT_ANY, LOWBIT_ANY));
    LOWBIT_TRY(lowbit_check_scales(op, absmax, offset, q->rows));
    LOWBIT_TRY(lowbit_check_tensor(op, "out", out, LOWBIT_FLOAT_DTYPES, q->rows, q->cols));
    LOWBIT_ON_CUDA(executor,
                   lowbit_int8_dequantize_cuda(op, q, absmax, offset, out, executor->cuda_stream));
    struct dequantize c = {.q = q, .absmax = absmax, .offset = offset, .out = out};
    c.row = lowbit_int8_select_ukernels(lowbit_cpu_isa()).dequantize[out->dtype];
    const size_t pieces = (q->rows + ROWS - 1) / ROWS;
    lowbit_parallel(executor,
                    lowbit_task_count(executor, pieces, (double)q->rows * (double)q->cols * 0.3),
                    dequantize_rows, &c);
    return LOWBIT_OK;
}
