// SPDX-License-Identifier: MIT

#include "lowbit/lut4_linear_grad_input.h"

#include "arena.h"
#include "check.h"
#include "lut4_weight.h"
#include "panel_product.h"
#include "parallel.h"

#include "lowbit/cpu.h"

#include <stdbool.h>

static const char op[] = "lut4_linear_grad_input";

enum {
    RUN = 512, // columns of the weight that are dequantized at a time, at most
    AHEAD = 8, // rows that are asked for before they are read
};

struct grad_input {
    const lowbit_lut4_linear_grad_input_args *args;
    struct lowbit_lut4_ukernels ukernels;
    struct scratch {
        float *scales;     // of a run
        uint16_t *rows[2]; // [RUN] each
    } *scratch;            // [tasks]
    struct lowbit_panel_product product;
};

// Chooses the kernels and lays out the workspace; returns its size.
static size_t plan(struct grad_input *c, uint32_t isa, bool bf16, size_t m, size_t n,
                   size_t max_tasks, void *workspace) {
    lowbit_arena arena = {workspace, 0};
    c->ukernels = lowbit_lut4_select_ukernels(isa);
    c->scratch = lowbit_take(&arena, max_tasks * sizeof *c->scratch);
    for (size_t i = 0; i < max_tasks; i++) {
        struct scratch scratch = {
            .scales = lowbit_take(&arena, lowbit_lut4_most_scales(RUN) * sizeof(float)),
            .rows = {lowbit_take(&arena, sizeof(uint16_t[RUN])),
                     lowbit_take(&arena, sizeof(uint16_t[RUN]))},
        };
        if (workspace)
            c->scratch[i] = scratch;
    }
    lowbit_panel_product_plan(&c->product, isa, bf16, m, n, max_tasks, &arena);
    return arena.used;
}

size_t lowbit_lut4_linear_grad_input_workspace_size(size_t m, size_t n, size_t k,
                                                    size_t max_tasks) {
    struct grad_input c;
    const uint32_t isa = lowbit_cpu_isa();
    (void)k;
    if (!isa)
        return 0;
    const size_t fp32 = plan(&c, isa, false, m, n, max_tasks, NULL);
    const size_t bf16 = plan(&c, isa, true, m, n, max_tasks, NULL);
    return fp32 > bf16 ? fp32 : bf16;
}

static lowbit_status check(const lowbit_lut4_linear_grad_input_args *args,
                           const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    if (!args)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: args is null", op);
    LOWBIT_TRY(lowbit_check_tensor(op, "grad_output", args->grad_output, LOWBIT_FLOAT_DTYPES,
                                   LOWBIT_ANY, LOWBIT_ANY));
    LOWBIT_TRY(lowbit_check_tensor(op, "grad_input", args->grad_input, LOWBIT_FLOAT_DTYPES,
                                   args->grad_output->rows, LOWBIT_ANY));
    return lowbit_lut4_check_weight(op, &args->weight, args->grad_output->cols,
                                    args->grad_input->cols, executor);
}

// Rows n0 to n0 + n and columns k0 to k0 + k of the weight.
static void fill(void *ctx, size_t task, size_t n0, size_t n, size_t k0, size_t k, void *panel,
                 size_t stride) {
    const struct grad_input *c = ctx;
    const lowbit_lut4_weight *weight = &c->args->weight;
    const struct scratch *scratch = &c->scratch[task];
    const size_t width = c->args->grad_input->cols;
    const uint8_t *packed = weight->packed->data;
    if (c->product.gemm->type == LOWBIT_FLOAT32) {
        for (size_t i = 0; i < n; i++) {
            if (i + AHEAD < n)
                lowbit_prefetch(packed + ((n0 + i + AHEAD) * width + k0) / 2, k / 2);
            lowbit_lut4_read(weight, &c->ukernels, LOWBIT_FLOAT32, (n0 + i) * width + k0, k,
                             scratch->scales, (float *)panel + i * stride);
        }
        return;
    }
    for (size_t i = 0; i < n; i += 2) {
        for (size_t j = 0; j < 2 && i + j < n; j++) {
            if (i + j + AHEAD < n)
                lowbit_prefetch(packed + ((n0 + i + j + AHEAD) * width + k0) / 2, k / 2);
            lowbit_lut4_read(weight, &c->ukernels, LOWBIT_BFLOAT16, (n0 + i + j) * width + k0, k,
                             scratch->scales, scratch->rows[j]);
        }
        c->product.ukernels.interleave(k, scratch->rows[0], i + 1 < n ? scratch->rows[1] : NULL,
                                       (uint32_t *)panel + i / 2 * stride);
    }
}

lowbit_status lowbit_lut4_linear_grad_input(const lowbit_lut4_linear_grad_input_args *args,
                                            const lowbit_executor *executor, void *workspace,
                                            size_t workspace_size) {
    LOWBIT_TRY(check(args, executor));
    LOWBIT_ON_CUDA(executor, lowbit_fail(LOWBIT_UNSUPPORTED,
                                         "%s: has no form for a GPU; dequantize the weight and "
                                         "multiply with it",
                                         op));
    const lowbit_tensor *grad_output = args->grad_output;
    const size_t m = grad_output->rows, n = grad_output->cols, k = args->grad_input->cols;
    const size_t max_tasks = lowbit_max_tasks(executor);
    LOWBIT_TRY(
        lowbit_check_workspace(op, workspace, workspace_size,
                               lowbit_lut4_linear_grad_input_workspace_size(m, n, k, max_tasks)));
    struct grad_input c = {.args = args};
    plan(&c, lowbit_cpu_isa(), grad_output->dtype == LOWBIT_BFLOAT16, m, n, max_tasks, workspace);
    const struct lowbit_panel_product_args product = {
        .x = grad_output, .y = args->grad_input, .fill = fill, .ctx = &c};
    lowbit_panel_product_run(&c.product, &product, executor);
    return LOWBIT_OK;
}
