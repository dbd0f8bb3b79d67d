// SPDX-License-Identifier: MIT

#include "lowbit/int8_linear_grad_input.h"

#include "arena.h"
#include "check.h"
#include "floats.h"
#include "int8_dispatch.h"
#include "parallel.h"

#include "lowbit/cpu.h"

#include <stdatomic.h>
#include <string.h>

static const char op[] = "int8_linear_grad_input";

enum {
    BLOCK_M = 1024, // rows of grad_output at a time
    BLOCK_N = 256,  // rows of the weight in a panel
    TILE_K = 192,   // columns of a panel: whole vectors of the fma micro-kernels
    ROWS = LOWBIT_INT8_FMA_ROWS,
};

struct grad_input {
    const lowbit_int8_linear_grad_input_args *args;
    struct lowbit_int8_ukernels ukernels;
    size_t block, m;   // the first row of the current block, and its rows
    float *g;          // [groups of 4 rows][N][4]
    uint32_t *index;   // [BLOCK_N], counting up: the fma takes every row of the panel
    float *s, *offset; // [N]
    struct scratch {
        float *panel; // [BLOCK_N][TILE_K]
        float *sum;   // [rows of the block][TILE_K]
    } *scratch;       // [tasks]
    atomic_size_t next;
};

static size_t plan(struct grad_input *c, size_t m, size_t n, size_t max_tasks, void *workspace) {
    lowbit_arena arena = {workspace, 0};
    const size_t groups = ((m < BLOCK_M ? m : BLOCK_M) + ROWS - 1) / ROWS;
    c->g = lowbit_take(&arena, groups * n * sizeof(float[ROWS]));
    c->index = lowbit_take(&arena, BLOCK_N * sizeof *c->index);
    c->s = lowbit_take(&arena, n * sizeof *c->s);
    c->offset = lowbit_take(&arena, n * sizeof *c->offset);
    c->scratch = lowbit_take(&arena, max_tasks * sizeof *c->scratch);
    for (size_t i = 0; i < max_tasks; i++) {
        struct scratch scratch = {
            .panel = lowbit_take(&arena, sizeof(float[BLOCK_N][TILE_K])),
            .sum = lowbit_take(&arena, groups * sizeof(float[ROWS][TILE_K])),
        };
        if (workspace)
            c->scratch[i] = scratch;
    }
    return arena.used;
}

size_t lowbit_int8_linear_grad_input_workspace_size(size_t m, size_t n, size_t k,
                                                    size_t max_tasks) {
    struct grad_input c;
    (void)k;
    return plan(&c, m, n, max_tasks, NULL);
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

static void prepare(void *arg, size_t task) {
    struct grad_input *c = arg;
    (void)task;
    for (uint32_t i = 0; i < BLOCK_N; i++)
        c->index[i] = i;
    lowbit_int8_read_scales(c->args->absmax, c->args->offset, 0, c->args->weight->rows, c->s,
                            c->offset);
}

// Rows of grad_output as fp32, four side by side.
static void gather(void *arg, size_t task) {
    struct grad_input *c = arg;
    const lowbit_tensor *from = c->args->grad_output;
    const size_t n = from->cols;
    (void)task;
    for (size_t m0; (m0 = ROWS * atomic_fetch_add(&c->next, 1)) < c->m;) {
        float *to = c->g + m0 * n;
        for (size_t row = 0; row < ROWS; row++)
            for (size_t i = 0; i < n; i++)
                to[i * ROWS + row] =
                    m0 + row < c->m ? lowbit_element(from, c->block + m0 + row, i) : 0.0f;
    }
}

// The sums of all rows of the block for k columns from k0 on.
static void run_tile(const struct grad_input *c, const struct scratch *scratch, size_t k0,
                     size_t k) {
    const lowbit_int8_linear_grad_input_args *args = c->args;
    const lowbit_tensor *weight = args->weight;
    memset(scratch->sum, 0, c->m * sizeof(float[TILE_K]));
    for (size_t n0 = 0; n0 < weight->rows; n0 += BLOCK_N) {
        const uint32_t n = (uint32_t)(weight->rows - n0 < BLOCK_N ? weight->rows - n0 : BLOCK_N);
        for (size_t i = 0; i < n; i++)
            c->ukernels.dequantize[LOWBIT_FLOAT32](
                k, (const int8_t *)weight->data + (n0 + i) * weight->cols + k0, c->s[n0 + i],
                args->offset ? &c->offset[n0 + i] : NULL, scratch->panel + i * TILE_K);
        const uint32_t begin[2] = {0, n};
        for (size_t m0 = 0; m0 < c->m; m0 += ROWS) {
            const struct lowbit_int8_fma_args fma = {
                .m = c->m - m0 < ROWS ? c->m - m0 : ROWS,
                .n = k,
                .blocks = 1,
                .begin = begin,
                .index = c->index,
                .x = c->g + m0 * weight->rows + n0 * ROWS,
                .panel = scratch->panel,
                .panel_stride = TILE_K,
                .o = scratch->sum + m0 * TILE_K,
                .o_stride = TILE_K,
                .finite = true, // every element of x counts, zeros too
            };
            c->ukernels.fma(&fma);
        }
    }
    for (size_t m = 0; m < c->m; m++) {
        void *to = lowbit_float_row(args->grad_input, c->block + m);
        const float *sum = scratch->sum + m * TILE_K;
        for (size_t i = 0; i < k; i++)
            switch (args->grad_input->dtype) {
            case LOWBIT_FLOAT32:
                lowbit_float_store(f32, to, k0 + i, sum[i]);
                break;
            case LOWBIT_FLOAT16:
                lowbit_float_store(f16, to, k0 + i, sum[i]);
                break;
            default:
                lowbit_float_store(bf16, to, k0 + i, sum[i]);
                break;
            }
    }
}

static void run_tiles(void *arg, size_t task) {
    struct grad_input *c = arg;
    const size_t k = c->args->weight->cols;
    for (size_t k0; (k0 = TILE_K * atomic_fetch_add(&c->next, 1)) < k;)
        run_tile(c, &c->scratch[task], k0, k - k0 < TILE_K ? k - k0 : TILE_K);
}

lowbit_status lowbit_int8_linear_grad_input(const lowbit_int8_linear_grad_input_args *args,
                                            const lowbit_executor *executor, void *workspace,
                                            size_t workspace_size) {
    LOWBIT_TRY(check(args, executor));
    const size_t m = args->grad_output->rows, n = args->weight->rows, k = args->weight->cols;
    struct grad_input c = {.args = args};
    const size_t max_tasks = lowbit_max_tasks(executor);
    LOWBIT_TRY(
        lowbit_check_workspace(op, workspace, workspace_size, plan(&c, m, n, max_tasks, NULL)));
    plan(&c, m, n, max_tasks, workspace);
    c.ukernels = lowbit_int8_select_ukernels(lowbit_cpu_isa());
    lowbit_parallel(executor, 1, prepare, &c);
    for (c.block = 0; c.block < m; c.block += BLOCK_M) {
        c.m = m - c.block < BLOCK_M ? m - c.block : BLOCK_M;
        const double products = (double)c.m * (double)n * (double)k;
        atomic_store(&c.next, 0);
        lowbit_parallel(executor,
                        lowbit_task_count(executor, (c.m + ROWS - 1) / ROWS, (double)(c.m * n)),
                        gather, &c);
        atomic_store(&c.next, 0);
        lowbit_parallel(executor,
                        lowbit_task_count(executor, (k + TILE_K - 1) / TILE_K,
                                          (double)n * (double)k + products / 50),
                        run_tiles, &c);
    }
    return LOWBIT_OK;
}
