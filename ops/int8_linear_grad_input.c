// SPDX-License-Identifier: MIT

#include "lowbit/int8_linear_grad_input.h"

#include "check.h"
#include "floats.h"
#include "int8_dispatch.h"
#include "panel_product.h"
#include "parallel.h"

#include "lowbit/cpu.h"

static const char op[] = "int8_linear_grad_input";

enum { AHEAD = 8 }; // rows of the weight that are asked for before they are read

struct grad_input {
    const lowbit_int8_linear_grad_input_args *args;
    struct lowbit_int8_ukernels ukernels;
    struct lowbit_panel_product product;
    float *s, *offset; // [N]
};

// Chooses the kernels and lays out the workspace; returns its size.
static size_t plan(struct grad_input *c, bool bf16_grad, size_t m, size_t n, size_t max_tasks,
                   void *workspace) {
    lowbit_arena arena = {workspace, 0};
    const uint32_t isa = lowbit_cpu_isa();
    c->ukernels = lowbit_int8_select_ukernels(isa);
    lowbit_panel_product_plan(&c->product, isa, bf16_grad && c->ukernels.pairs, m, n, max_tasks,
                              &arena);
    c->s = lowbit_take(&arena, n * sizeof *c->s);
    c->offset = lowbit_take(&arena, n * sizeof *c->offset);
    return arena.used;
}

size_t lowbit_int8_linear_grad_input_workspace_size(size_t m, size_t n, size_t k,
                                                    size_t max_tasks) {
    struct grad_input c;
    (void)k;
    if (!lowbit_cpu_isa())
        return 0;
    const size_t fp32 = plan(&c, false, m, n, max_tasks, NULL);
    const size_t bf16 = plan(&c, true, m, n, max_tasks, NULL);
    return fp32 > bf16 ? fp32 : bf16;
}

static lowbit_status check(const lowbit_int8_linear_grad_input_args *args,
                           const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    if (!args)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: args is null", op);
    LOWBIT_TRY(lowbit_check_tensor(op, "grad_output", args->grad_output, LOWBIT_FLOAT_DTYPES,
                                   LOWBIT_ANY, LOWBIT_ANY));
    const size_t n = args->grad_output->cols;
    LOWBIT_TRY(
        lowbit_check_contiguous(op, "weight", args->weight, LOWBIT_INT8_DTYPE, n, LOWBIT_ANY));
    LOWBIT_TRY(lowbit_check_scales(op, args->absmax, args->offset, n));
    return lowbit_check_tensor(op, "grad_input", args->grad_input, LOWBIT_FLOAT_DTYPES,
                               args->grad_output->rows, args->weight->cols);
}

static void read_scales(void *arg, size_t task) {
    struct grad_input *c = arg;
    (void)task;
    lowbit_int8_read_scales(c->args->absmax, c->args->offset, 0, c->args->weight->rows, c->s,
                            c->offset);
}

// Asks for row i of n rows of the weight, if there is one.
static void fetch_row(const int8_t *rows, size_t width, size_t i, size_t n, size_t k) {
    if (i < n)
        lowbit_prefetch(rows + i * width, k);
}

// Rows of the weight, dequantized.
static void fill(void *ctx, size_t task, size_t n0, size_t n, size_t k0, size_t k, void *panel,
                 size_t stride) {
    const struct grad_input *c = ctx;
    const size_t width = c->args->weight->cols;
    const int8_t *rows = (const int8_t *)c->args->weight->data + n0 * width + k0;
    (void)task;
    for (size_t i = 0; i < n; i++) {
        fetch_row(rows, width, i + AHEAD, n, k);
        c->ukernels.dequantize[LOWBIT_FLOAT32](k, rows + i * width, c->s[n0 + i],
                                               c->args->offset ? &c->offset[n0 + i] : NULL,
                                               (float *)panel + i * stride);
    }
}

// For products of bf16 the codes themselves, which bf16 holds exactly. Rows of the gradient are
// scaled instead, and what the offset makes is added last.
static void fill_bf16(void *ctx, size_t task, size_t n0, size_t n, size_t k0, size_t k, void *panel,
                      size_t stride) {
    const struct grad_input *c = ctx;
    const size_t width = c->args->weight->cols;
    const int8_t *rows = (const int8_t *)c->args->weight->data + n0 * width + k0;
    (void)task;
    for (size_t i = 0; i < n; i += 2) {
        fetch_row(rows, width, i + AHEAD, n, k);
        fetch_row(rows, width, i + AHEAD + 1, n, k);
        c->ukernels.pairs(k, rows + i * width, i + 1 < n ? rows + (i + 1) * width : NULL,
                          (uint32_t *)panel + i / 2 * stride);
    }
}

static float scale_row(void *ctx, size_t n0, size_t n, const void *grad_output, uint16_t *to) {
    const struct grad_input *c = ctx;
    return c->ukernels.scale(n, grad_output, c->s + n0, c->args->offset ? c->offset + n0 : NULL,
                             to);
}

lowbit_status lowbit_int8_linear_grad_input(const lowbit_int8_linear_grad_input_args *args,
                                            const lowbit_executor *executor, void *workspace,
                                            size_t workspace_size) {
    LOWBIT_TRY(check(args, executor));
    LOWBIT_ON_CUDA(executor, lowbit_fail(LOWBIT_UNSUPPORTED,
                                         "%s: has no form for a GPU; dequantize the weight and "
                                         "multiply with it",
                                         op));
    const size_t m = args->grad_output->rows, n = args->weight->rows, k = args->weight->cols;
    const size_t max_tasks = lowbit_max_tasks(executor);
    LOWBIT_TRY(
        lowbit_check_workspace(op, workspace, workspace_size,
                               lowbit_int8_linear_grad_input_workspace_size(m, n, k, max_tasks)));
    struct grad_input c = {.args = args};
    plan(&c, args->grad_output->dtype == LOWBIT_BFLOAT16, m, n, max_tasks, workspace);
    const bool bf16 = c.product.gemm->type == LOWBIT_BFLOAT16;
    lowbit_parallel(executor, 1, read_scales, &c);
    const struct lowbit_panel_product_args product = {
        .x = args->grad_output,
        .y = args->grad_input,
        .fill = bf16 ? fill_bf16 : fill,
        .row = scale_row,
        .ctx = &c,
    };
    lowbit_panel_product_run(&c.product, &product, executor);
    return LOWBIT_OK;
}
