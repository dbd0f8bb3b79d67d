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
    BLOCK_N =
        256, // rows of the weight in a panel of floats, whose products are summed on their own
    BLOCK_N_PAIRS = 512, // rows of the weight in a panel of bf16 pairs
    TILE_K = 192,        // columns of a panel: whole vectors of the micro-kernels
    ROWS = LOWBIT_INT8_FMA_ROWS,
};

struct grad_input {
    const lowbit_int8_linear_grad_input_args *args;
    const struct lowbit_int8_grad *bf16; // null: sums in fp32
    struct lowbit_int8_ukernels ukernels;
    size_t block, m;   // the first row of the current block, and its rows
    float *s, *offset; // [N]
    uint32_t *index;   // [BLOCK_N], counting up: the fma takes every row of its panel
    float *g;          // [groups of 4 rows][N][4], grad_output for sums in fp32
    uint16_t *g_bf16;  // [rows][g_stride], grad_output * s for products of bf16
    size_t g_stride;
    float *base; // [rows], the part of a row's result that the offset makes
    struct scratch {
        void *panel; // float [BLOCK_N][TILE_K] or uint32_t [BLOCK_N_PAIRS / 2][TILE_K]
        float *sum;  // [rows][TILE_K]
    } *scratch;      // [tasks]
    atomic_size_t next;
};

// Chooses the kernels and lays out the workspace; returns its size.
static size_t plan(struct grad_input *c, uint32_t isa, bool bf16_grad, size_t m, size_t n,
                   size_t max_tasks, void *workspace) {
    lowbit_arena arena = {workspace, 0};
    const size_t rows = lowbit_round_up(m < BLOCK_M ? m : BLOCK_M, LOWBIT_INT8_TILE_M);
    c->ukernels = lowbit_int8_select_ukernels(isa);
    c->bf16 = bf16_grad ? lowbit_int8_select_grad(isa) : NULL;
    c->s = lowbit_take(&arena, n * sizeof *c->s);
    c->offset = lowbit_take(&arena, n * sizeof *c->offset);
    if (c->bf16) {
        // A line more keeps rows of N = 2048 off each other's cache sets.
        c->g_stride = lowbit_round_up(n, 32) + 32;
        c->g_bf16 = lowbit_take(&arena, rows * c->g_stride * sizeof *c->g_bf16);
        c->base = lowbit_take(&arena, rows * sizeof *c->base);
    } else {
        c->index = lowbit_take(&arena, BLOCK_N * sizeof *c->index);
        c->g = lowbit_take(&arena, rows * n * sizeof *c->g);
    }
    c->scratch = lowbit_take(&arena, max_tasks * sizeof *c->scratch);
    for (size_t i = 0; i < max_tasks; i++) {
        struct scratch scratch = {
            .panel = lowbit_take(&arena, sizeof(float[BLOCK_N][TILE_K])),
            .sum = lowbit_take(&arena, rows * sizeof(float[TILE_K])),
        };
        if (workspace)
            c->scratch[i] = scratch;
    }
    return arena.used;
}

_Static_assert(sizeof(uint32_t[BLOCK_N_PAIRS / 2][TILE_K]) == sizeof(float[BLOCK_N][TILE_K]),
               "both kinds of panel fit into one buffer");

size_t lowbit_int8_linear_grad_input_workspace_size(size_t m, size_t n, size_t k,
                                                    size_t max_tasks) {
    struct grad_input c;
    (void)k;
    const size_t fp32 = plan(&c, lowbit_cpu_isa(), false, m, n, max_tasks, NULL);
    const size_t bf16 = plan(&c, lowbit_cpu_isa(), true, m, n, max_tasks, NULL);
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
    for (uint32_t i = 0; !c->bf16 && i < BLOCK_N; i++)
        c->index[i] = i;
}

// One row of grad_output, times the scales.
static void scale_row(struct grad_input *c, size_t m) {
    const size_t n = c->args->weight->rows;
    uint16_t *to = c->g_bf16 + m * c->g_stride;
    c->base[m] = c->bf16->scale(n, lowbit_float_row(c->args->grad_output, c->block + m), c->s,
                                c->args->offset ? c->offset : NULL, to);
    memset(to + n, 0, (c->g_stride - n) * sizeof *to);
}

// Four rows of grad_output side by side; those past the last are zero.
LOWBIT_INLINE void gather_type(enum lowbit_float type, const struct grad_input *c, size_t m0) {
    const lowbit_tensor *from = c->args->grad_output;
    float *to = c->g + m0 * from->cols;
    if (c->m - m0 < ROWS)
        memset(to, 0, from->cols * sizeof(float[ROWS]));
    for (size_t row = 0; row < ROWS && m0 + row < c->m; row++) {
        const void *values = lowbit_float_row(from, c->block + m0 + row);
        for (size_t i = 0; i < from->cols; i++)
            to[i * ROWS + row] = lowbit_float_load(type, values, i);
    }
}

static void gather_rows(const struct grad_input *c, size_t m0) {
    switch (c->args->grad_output->dtype) {
    case LOWBIT_FLOAT32: gather_type(f32, c, m0); break;
    case LOWBIT_FLOAT16: gather_type(f16, c, m0); break;
    default: gather_type(bf16, c, m0); break;
    }
}

static void prepare(void *arg, size_t task) {
    struct grad_input *c = arg;
    (void)task;
    for (size_t m0; (m0 = ROWS * atomic_fetch_add(&c->next, 1)) < c->m;)
        if (c->bf16)
            for (size_t m = m0; m < c->m && m < m0 + ROWS; m++)
                scale_row(c, m);
        else
            gather_rows(c, m0);
}

// The sums of all rows of the block for k columns from column k0 on, in fp32.
static void sum_fp32(const struct grad_input *c, const struct scratch *scratch, size_t k0,
                     size_t k) {
    const lowbit_tensor *weight = c->args->weight;
    float *panel = scratch->panel;
    for (size_t n0 = 0; n0 < weight->rows; n0 += BLOCK_N) {
        const uint32_t n = (uint32_t)(weight->rows - n0 < BLOCK_N ? weight->rows - n0 : BLOCK_N);
        for (size_t i = 0; i < n; i++)
            c->ukernels.dequantize[LOWBIT_FLOAT32](
                k, (const int8_t *)weight->data + (n0 + i) * weight->cols + k0, c->s[n0 + i],
                c->args->offset ? &c->offset[n0 + i] : NULL, panel + i * TILE_K);
        const uint32_t begin[2] = {0, n};
        for (size_t m0 = 0; m0 < c->m; m0 += ROWS) {
            const struct lowbit_int8_fma_args fma = {
                .m = c->m - m0 < ROWS ? c->m - m0 : ROWS,
                .n = k,
                .blocks = 1,
                .begin = begin,
                .index = c->index,
                .x = c->g + m0 * weight->rows + n0 * ROWS,
                .panel = panel,
                .panel_stride = TILE_K,
                .o = scratch->sum + m0 * TILE_K,
                .o_stride = TILE_K,
                .finite = true, // every element of x counts, zeros too
            };
            c->ukernels.fma(&fma);
        }
    }
}

// The same from products of bf16, without what the offset makes.
static void sum_bf16(const struct grad_input *c, const struct scratch *scratch, size_t k0,
                     size_t k) {
    const lowbit_tensor *weight = c->args->weight;
    uint32_t *panel = scratch->panel;
    for (size_t n0 = 0; n0 < weight->rows; n0 += BLOCK_N_PAIRS) {
        const size_t n = weight->rows - n0 < BLOCK_N_PAIRS ? weight->rows - n0 : BLOCK_N_PAIRS;
        const size_t padded = lowbit_round_up(n, 32);
        const int8_t *rows = (const int8_t *)weight->data + n0 * weight->cols + k0;
        for (size_t i = 0; i < n; i += 2)
            c->bf16->pairs(k, rows + i * weight->cols,
                           i + 1 < n ? rows + (i + 1) * weight->cols : NULL,
                           panel + i / 2 * TILE_K);
        for (size_t pair = (n + 1) / 2; pair < padded / 2; pair++)
            memset(panel + pair * TILE_K, 0, sizeof(uint32_t[TILE_K]));
        for (size_t m0 = 0; m0 < c->m; m0 += c->bf16->mr) {
            const struct lowbit_int8_grad_args grad = {
                .m = c->m - m0 < c->bf16->mr ? c->m - m0 : c->bf16->mr,
                .n = padded,
                .k = k,
                .g = c->g_bf16 + m0 * c->g_stride + n0,
                .g_stride = c->g_stride,
                .panel = panel,
                .sum = scratch->sum + m0 * TILE_K,
                .stride = TILE_K,
            };
            c->bf16->run(&grad);
        }
    }
}

static void run_tile(const struct grad_input *c, const struct scratch *scratch, size_t k0,
                     size_t k) {
    const lowbit_tensor *grad_input = c->args->grad_input;
    memset(scratch->sum, 0, c->m * sizeof(float[TILE_K]));
    if (c->bf16)
        sum_bf16(c, scratch, k0, k);
    else
        sum_fp32(c, scratch, k0, k);
    const size_t element = lowbit_float_size((enum lowbit_float)grad_input->dtype);
    for (size_t m = 0; m < c->m; m++)
        c->ukernels.store[grad_input->dtype](
            k, scratch->sum + m * TILE_K, c->bf16 ? c->base[m] : 0.0f,
            (char *)lowbit_float_row(grad_input, c->block + m) + k0 * element);
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
    const bool bf16_grad = args->grad_output->dtype == LOWBIT_BFLOAT16;
    const uint32_t isa = lowbit_cpu_isa();
    const size_t max_tasks = lowbit_max_tasks(executor);
    struct grad_input c = {.args = args};
    LOWBIT_TRY(
        lowbit_check_workspace(op, workspace, workspace_size,
                               lowbit_int8_linear_grad_input_workspace_size(m, n, k, max_tasks)));
    plan(&c, isa, bf16_grad, m, n, max_tasks, workspace);
    lowbit_parallel(executor, 1, read_scales, &c);
    for (c.block = 0; c.block < m; c.block += BLOCK_M) {
        c.m = m - c.block < BLOCK_M ? m - c.block : BLOCK_M;
        const size_t groups = (c.m + ROWS - 1) / ROWS, tiles = (k + TILE_K - 1) / TILE_K;
        const double products = (double)c.m * (double)n * (double)k;
        atomic_store(&c.next, 0);
        lowbit_parallel(executor, lowbit_task_count(executor, groups, (double)c.m * (double)n),
                        prepare, &c);
        atomic_store(&c.next, 0);
        lowbit_parallel(executor,
                        lowbit_task_count(executor, tiles, (double)n * (double)k + products / 50),
                        run_tiles, &c);
    }
    return LOWBIT_OK;
}
