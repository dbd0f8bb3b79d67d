// SPDX-License-Identifier: MIT

#include "int8_cuda.h"

#include "arena.h"
#include "cuda.h"
#include "floats.h"

#include "../kernels/cuda/int8/launch.h"

enum {
    BLOCK_M = 8192,   // rows of x at a time: scratch does not grow with all of them
    DECODE_ROWS = 16, // the most that the kernel for few rows takes
};

// The scratch of a block of rows; returns its size.
static size_t plan(lowbit_cuda_int8_linear *c, size_t m, size_t n, size_t k, void *workspace) {
    lowbit_arena arena = {workspace, 0};
    lowbit_cuda_int8_rows *rows = &c->rows;
    m = m < BLOCK_M ? m : BLOCK_M;
    rows->stride = lowbit_round_up(k, LOWBIT_CUDA_ROW_ALIGN);
    const size_t words = rows->stride / 32;
    rows->q = lowbit_take(&arena, m * rows->stride);
    rows->of_row = lowbit_take(&arena, m * sizeof *rows->of_row);
    rows->mask = lowbit_take(&arena, m * words * sizeof *rows->mask);
    rows->list = lowbit_take(&arena, m * LOWBIT_CUDA_LISTED * sizeof *rows->list);
    const size_t sums = m > DECODE_ROWS ? lowbit_int8_linear_gemm_sums(m, n, k) : 0;
    c->sums = sums ? lowbit_take(&arena, sums) : NULL;
    if (m > LOWBIT_CUDA_LOCAL_M || (m > DECODE_ROWS && k > LOWBIT_CUDA_LOCAL_K)) {
        lowbit_cuda_int8_panel *panel = &c->panel;
        panel->columns = lowbit_take(&arena, words * sizeof *panel->columns);
        panel->stride = lowbit_round_up(n, 4);
        panel->capacity = 1 + (n ? LOWBIT_CUDA_PANEL_BYTES / panel->stride : 0);
        panel->capacity = panel->capacity < k ? panel->capacity : k;
        panel->values = lowbit_take(&arena, panel->capacity * panel->stride);
    }
    return arena.used;
}

size_t lowbit_int8_linear_cuda_workspace_size(size_t m, size_t n, size_t k) {
    lowbit_cuda_int8_linear c;
    return k <= LOWBIT_INT8_LINEAR_MAX_K ? plan(&c, m, n, k, NULL) : 0;
}

lowbit_status lowbit_int8_linear_cuda(const char *op, const lowbit_int8_linear_args *args,
                                      float threshold, void *stream, void *workspace,
                                      size_t workspace_size) {
    const lowbit_tensor *x = args->x, *weight = args->weight, *y = args->y;
    LOWBIT_TRY(lowbit_check_workspace(
        op, workspace, workspace_size,
        lowbit_int8_linear_cuda_workspace_size(x->rows, weight->rows, x->cols)));
    lowbit_cuda_int8_linear c = {
        .n = weight->rows,
        .k = x->cols,
        .x_type = lowbit_float_type(x),
        .x_stride = x->stride,
        .weight = weight->data,
        .scale_type = lowbit_float_type(args->absmax),
        .absmax = args->absmax->data,
        .offset = args->offset ? args->offset->data : NULL,
        .bias_type = args->bias ? lowbit_float_type(args->bias) : f32,
        .bias = args->bias ? args->bias->data : NULL,
        .threshold = threshold,
        .y_type = lowbit_float_type(y),
        .y_stride = y->stride,
    };
    plan(&c, x->rows, c.n, c.k, workspace);
    if (!c.n)
        return LOWBIT_OK;
    for (size_t m = 0; m < x->rows; m += c.m) {
        c.m = x->rows - m < BLOCK_M ? x->rows - m : BLOCK_M;
        c.x = lowbit_float_row(x, m);
        c.y = lowbit_float_row(y, m);
        LOWBIT_TRY(lowbit_cuda_status(op, x->rows <= DECODE_ROWS
                                              ? lowbit_int8_linear_decode_launch(&c, stream)
                                              : lowbit_int8_linear_gemm_launch(&c, stream)));
    }
    return LOWBIT_OK;
}

lowbit_status lowbit_int8_matmul_cuda(const char *op, const lowbit_tensor *a,
                                      const lowbit_tensor *b, const lowbit_tensor *out,
                                      void *stream) {
    if (!b->rows)
        return LOWBIT_OK;
    // A grid has no room for any number of tiles. Within a tile of up to 128 rows offsets have 32
    // bits.
    const size_t block = a->stride < (size_t)1 << 25 ? BLOCK_M : 1;
    for (size_t m = 0; m < a->rows; m += block) {
        const size_t rows = a->rows - m < block ? a->rows - m : block;
        LOWBIT_TRY(lowbit_cuda_status(
            op, lowbit_int8_matmul_launch(
                    (const int8_t *)a->data + m * a->stride, a->stride, b->data, rows, b->rows,
                    a->cols, (int32_t *)out->data + m * out->stride, out->stride, stream)));
    }
    return LOWBIT_OK;
}

lowbit_status lowbit_int8_quantize_cuda(const char *op, const lowbit_tensor *x, float threshold,
                                        const lowbit_tensor *q, const lowbit_tensor *absmax,
                                        const lowbit_tensor *offset, void *stream) {
    if (!x->rows)
        return LOWBIT_OK;
    if (offset)
        return lowbit_cuda_status(op, lowbit_int8_quantize_offset_launch(
                                          x->data, lowbit_float_type(x), x->rows, x->cols,
                                          x->stride, q->data, q->stride, lowbit_float_type(absmax),
                                          absmax->data, offset->data, stream));
    return lowbit_cuda_status(
        op, lowbit_int8_quantize_launch(x->data, lowbit_float_type(x), x->rows, x->cols, x->stride,
                                        threshold, q->data, q->stride, lowbit_float_type(absmax),
                                        absmax->data, stream));
}

lowbit_status lowbit_int8_dequantize_cuda(const char *op, const lowbit_tensor *q,
                                          const lowbit_tensor *absmax, const lowbit_tensor *offset,
                                          const lowbit_tensor *out, void *stream) {
    if (!q->rows || !q->cols)
        return LOWBIT_OK;
    return lowbit_cuda_status(
        op, lowbit_int8_dequantize_launch(q->data, q->rows, q->cols, q->stride,
                                          lowbit_float_type(absmax), absmax->data,
                                          offset ? offset->data : NULL, lowbit_float_type(out),
                                          out->data, out->stride, stream));
}
