// SPDX-License-Identifier: MIT

#include "lowbit/int8_linear.h"

#include "check.h"
#include "floats.h"
#include "int8_cuda.h"
#include "int8_outliers.h"
#include "int8_product.h"

#include "lowbit/cpu.h"

static const char op[] = "int8_linear";

struct linear {
    const lowbit_int8_linear_args *args;
    struct lowbit_int8_ukernels ukernels;
    struct lowbit_int8_product product;
    struct lowbit_int8_outliers outliers;
    float t;      // the threshold, +inf for none
    size_t block; // the first row of the current block
    float *r;     // [rows of the block], a / 127
    struct columns {
        float s[LOWBIT_INT8_TILE_N], offset[LOWBIT_INT8_TILE_N], bias[LOWBIT_INT8_TILE_N];
    } *columns; // [tasks], of the current tile
    atomic_size_t next_unit;
    atomic_bool any_outlier;
};

// Chooses the kernels and lays out the workspace; returns its size.
static size_t plan(struct linear *c, uint32_t isa, size_t m, size_t n, size_t k, size_t max_tasks,
                   void *workspace) {
    lowbit_arena arena = {workspace, 0};
    c->ukernels = lowbit_int8_select_ukernels(isa);
    lowbit_int8_product_plan(&c->product, isa, m, n, k, false, max_tasks, &arena);
    c->r = lowbit_take(&arena, c->product.m * sizeof *c->r);
    c->columns = lowbit_take(&arena, max_tasks * sizeof *c->columns);
    lowbit_int8_outliers_plan(&c->outliers, c->product.m, k, max_tasks, &arena);
    return arena.used;
}

size_t lowbit_int8_linear_workspace_size(size_t m, size_t n, size_t k, size_t max_tasks) {
#if LOWBIT_CUDA
    if (!max_tasks)
        return lowbit_int8_linear_cuda_workspace_size(m, n, k);
#endif
    struct linear c;
    const uint32_t isa = lowbit_cpu_isa();
    return isa && k <= LOWBIT_INT8_LINEAR_MAX_K ? plan(&c, isa, m, n, k, max_tasks, NULL) : 0;
}

const char *lowbit_int8_linear_ukernel(size_t m, size_t k) {
    (void)k;
    const uint32_t isa = lowbit_cpu_isa();
    return isa ? lowbit_int8_select_gemm(isa, m, false)->name : NULL;
}

static lowbit_status check(const lowbit_int8_linear_args *args, const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    if (!args)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: args is null", op);
    LOWBIT_TRY(lowbit_check_tensor(op, "x", args->x, LOWBIT_FLOAT_DTYPES, LOWBIT_ANY, LOWBIT_ANY));
    const size_t k = args->x->cols;
    LOWBIT_TRY(
        lowbit_check_contiguous(op, "weight", args->weight, LOWBIT_INT8_DTYPE, LOWBIT_ANY, k));
    const size_t n = args->weight->rows;
    if (k > LOWBIT_INT8_LINEAR_MAX_K)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT,
                           "%s: x has K = %zu columns, expected at most %d", op, k,
                           LOWBIT_INT8_LINEAR_MAX_K);
    LOWBIT_TRY(lowbit_check_scales(op, args->absmax, args->offset, n));
    if (args->bias)
        LOWBIT_TRY(lowbit_check_vector(op, "bias", args->bias, LOWBIT_FLOAT_DTYPES, n));
    LOWBIT_TRY(lowbit_check_threshold(op, args->threshold));
    return lowbit_check_tensor(op, "y", args->y, LOWBIT_FLOAT_DTYPES, args->x->rows, n);
}

struct group_rows {
    const lowbit_tensor *x;
    size_t first;
};

static float group_value(void *ctx, size_t row, size_t k) {
    const struct group_rows *rows = ctx;
    return lowbit_element(rows->x, rows->first + row, k);
}

// Quantizes up to 4 rows from row m0 of the block on, and lists their outliers.
static bool quantize_group(struct linear *c, size_t task, size_t m0) {
    const struct lowbit_int8_product *p = &c->product;
    const lowbit_tensor *x = c->args->x;
    const size_t rows = p->m - m0 < LOWBIT_INT8_FMA_ROWS ? p->m - m0 : LOWBIT_INT8_FMA_ROWS;
    uint64_t *mask = c->outliers.scratch[task].mask;
    size_t outliers = 0;
    for (size_t i = 0; i < rows; i++) {
        const void *row = lowbit_float_row(x, c->block + m0 + i);
        struct lowbit_int8_range range;
        c->ukernels.range[x->dtype](p->k, row, c->t, mask + i * c->outliers.words, &range);
        const float a = lowbit_int8_absmax(&range);
        p->xsum[m0 + i] = c->ukernels.codes[x->dtype](p->k, row, c->t, 0.0f, lowbit_int8_inverse(a),
                                                      lowbit_int8_product_row(p, task, m0 + i));
        c->r[m0 + i] = a / 127.0f;
        outliers += range.outliers;
    }
    struct group_rows ctx = {x, c->block + m0};
    lowbit_int8_outliers_list(&c->outliers, m0 / LOWBIT_INT8_FMA_ROWS, rows, mask, group_value,
                              &ctx);
    return outliers != 0;
}

static void quantize(void *arg, size_t task) {
    struct linear *c = arg;
    const size_t m = c->product.m;
    for (size_t m0; (m0 = LOWBIT_INT8_UNIT_M * atomic_fetch_add(&c->next_unit, 1)) < m;) {
        bool any = false;
        for (size_t i = m0; i < m && i < m0 + LOWBIT_INT8_UNIT_M; i += LOWBIT_INT8_FMA_ROWS)
            any |= quantize_group(c, task, i);
        lowbit_int8_product_store(&c->product, task, m0);
        if (any)
            atomic_store_explicit(&c->any_outlier, true, memory_order_relaxed);
    }
}

// From integer sums to y. The first rows of a tile come when its part of the weight is in the
// cache.
static void finish(void *ctx, size_t task, size_t m0, size_t m, size_t n0, size_t n,
                   const int32_t *acc) {
    struct linear *c = ctx;
    const lowbit_int8_linear_args *args = c->args;
    const struct lowbit_int8_product *p = &c->product;
    struct columns *columns = &c->columns[task];
    if (m0 == 0) {
        lowbit_int8_read_scales(args->absmax, args->offset, n0, n, columns->s, columns->offset);
        for (size_t i = 0; args->bias && i < n; i++)
            columns->bias[i] = lowbit_element(args->bias, n0 + i, 0);
        if (c->outliers.passes)
            lowbit_int8_outliers_multiply(&c->outliers, &c->ukernels, task, p->m, n,
                                          p->weight + n0 * p->k, columns->s,
                                          args->offset ? columns->offset : NULL);
    }
    const size_t element = lowbit_float_size((enum lowbit_float)args->y->dtype);
    const struct lowbit_int8_epilogue_args epilogue = {
        .m = m,
        .n = n,
        .acc = acc,
        .acc_stride = LOWBIT_INT8_TILE_N,
        .r = c->r + m0,
        .xsum = p->xsum + m0,
        .s = columns->s,
        .offset = args->offset ? columns->offset : NULL,
        .bias = args->bias ? columns->bias : NULL,
        .o = c->outliers.passes ? c->outliers.scratch[task].o + m0 * LOWBIT_INT8_TILE_N : NULL,
        .o_stride = LOWBIT_INT8_TILE_N,
        .y = (char *)lowbit_float_row(args->y, c->block + m0) + n0 * element,
        .y_stride = args->y->stride * element,
    };
    c->ukernels.epilogue[args->y->dtype](&epilogue);
}

lowbit_status lowbit_int8_linear(const lowbit_int8_linear_args *args,
                                 const lowbit_executor *executor, void *workspace,
                                 size_t workspace_size) {
    LOWBIT_TRY(check(args, executor));
    LOWBIT_ON_CUDA(executor,
                   lowbit_int8_linear_cuda(op, args, lowbit_int8_limit(args->threshold),
                                           executor->cuda_stream, workspace, workspace_size));
    const size_t m = args->x->rows, n = args->weight->rows, k = args->x->cols;
    struct linear c = {.args = args, .t = lowbit_int8_limit(args->threshold)};
    struct lowbit_int8_product *p = &c.product;
    const uint32_t isa = lowbit_cpu_isa();
    const size_t max_tasks = lowbit_max_tasks(executor);
    LOWBIT_TRY(lowbit_check_workspace(op, workspace, workspace_size,
                                      plan(&c, isa, m, n, k, max_tasks, NULL)));
    plan(&c, isa, m, n, k, max_tasks, workspace);
    p->weight = args->weight->data;
    p->finish = finish;
    p->ctx = &c;
    for (c.block = 0; c.block < m; c.block += LOWBIT_INT8_BLOCK_M) {
        p->m = m - c.block < LOWBIT_INT8_BLOCK_M ? m - c.block : LOWBIT_INT8_BLOCK_M;
        c.outliers.groups = (p->m + LOWBIT_INT8_FMA_ROWS - 1) / LOWBIT_INT8_FMA_ROWS;
        c.outliers.passes = 0;
        const size_t units = (p->m + LOWBIT_INT8_UNIT_M - 1) / LOWBIT_INT8_UNIT_M;
        atomic_store(&c.next_unit, 0);
        atomic_store(&c.any_outlier, false);
        lowbit_parallel(executor, lowbit_task_count(executor, units, (double)(p->m * k) * 0.4),
                        quantize, &c);
        if (atomic_load(&c.any_outlier))
            lowbit_int8_outliers_join(&c.outliers);
        lowbit_int8_product_run(p, executor);
    }
    return LOWBIT_OK;
}
