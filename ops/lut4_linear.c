// SPDX-License-Identifier: MIT

#include "lowbit/lut4_linear.h"

#include "arena.h"
#include "check.h"
#include "floats.h"
#include "lut4_cuda.h"
#include "lut4_weight.h"
#include "panel_product.h"
#include "parallel.h"

#include "lowbit/cpu.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

static const char op[] = "lut4_linear";

enum {
    MOST_ROWS = 48, // of x, in any gemm that reads the weight in place
    UNIT_M = LOWBIT_LUT4_UNIT_M,
    STAGING_K = 1024,                    // columns of x that are put into tiles at a time
    STAGING_STRIDE = 2 * STAGING_K + 64, // bytes; the line more spreads rows over a cache's sets
    FETCH = 4096,                        // bytes of a tile that are asked for at once
    GROUP = 16,                          // rows of the weight that are transposed at a time
    PANEL_K = 512,                       // most rows of a panel
};

struct linear {
    const lowbit_lut4_linear_args *args;
    const struct lowbit_lut4_gemm *gemm; // null: the weight is dequantized in panels
    struct lowbit_lut4_ukernels ukernels;
    struct lowbit_dense_ukernels dense;
    float *bias; // [N]
    struct scratch {
        float *scales; // [NR][K / blocksize], or those of a run of PANEL_K elements
        void *rows;    // float [GROUP][PANEL_K], dequantized
        float *acc;    // [MOST_ROWS][NR]
        void *staging; // [UNIT_M][STAGING_STRIDE], arranged x before it is put into tiles
    } *scratch;        // [tasks]

    // Few rows of x
    void *x; // arranged
    size_t x_stride;
    atomic_size_t next;

    // Many rows of x
    struct lowbit_panel_product product;
};

// Chooses the kernels and lays out the workspace; returns its size.
static size_t plan(struct linear *c, uint32_t isa, const struct lowbit_lut4_gemm *gemm, bool bf16,
                   size_t m, size_t n, size_t k, size_t max_tasks, void *workspace) {
    lowbit_arena arena = {workspace, 0};
    c->gemm = gemm;
    c->ukernels = lowbit_lut4_select_ukernels(isa);
    c->dense = lowbit_dense_select_ukernels(isa);
    c->bias = lowbit_take(&arena, n * sizeof *c->bias);
    c->scratch = lowbit_take(&arena, max_tasks * sizeof *c->scratch);
    for (size_t i = 0; i < max_tasks; i++) {
        struct scratch scratch = {
            .scales = lowbit_take(&arena,
                                  (gemm ? gemm->nr * (k / 32) : lowbit_lut4_most_scales(PANEL_K)) *
                                      sizeof(float)),
            .rows = gemm ? NULL : lowbit_take(&arena, sizeof(float[GROUP][PANEL_K])),
            .acc = gemm ? lowbit_take(&arena, MOST_ROWS * gemm->nr * sizeof(float)) : NULL,
            .staging = gemm && gemm->x_layout == LOWBIT_LUT4_TILES
                           ? lowbit_take(&arena, UNIT_M * STAGING_STRIDE)
                           : NULL,
        };
        if (workspace)
            c->scratch[i] = scratch;
    }
    if (!gemm) {
        lowbit_panel_product_plan(&c->product, isa, bf16, m, k, max_tasks, &arena);
        return arena.used;
    }
    const size_t row =
        lowbit_round_up(k, LOWBIT_LUT4_X_ALIGN) * lowbit_float_size((enum lowbit_float)gemm->type);
    const bool tiles = gemm->x_layout == LOWBIT_LUT4_TILES;
    // Nine lines more spread the rows of a block of columns over all of a cache's sets.
    c->x_stride = tiles ? UNIT_M * row : row + 9 * 64;
    c->x = lowbit_take(&arena, (tiles ? (m + UNIT_M - 1) / UNIT_M : m) * c->x_stride);
    return arena.used;
}

size_t lowbit_lut4_linear_workspace_size(size_t m, size_t n, size_t k, size_t max_tasks) {
#if LOWBIT_CUDA
    if (!max_tasks)
        return lowbit_lut4_linear_cuda_workspace_size(m, n, k);
#endif
    const uint32_t isa = lowbit_cpu_isa();
    if (!isa)
        return 0;
    struct linear c;
    size_t most = 0;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const struct lowbit_lut4_gemm *gemms[] = {
            NULL,
            lowbit_lut4_select_gemm(isa, bf16 ? LOWBIT_BFLOAT16 : LOWBIT_FLOAT32, m, 0, 4096)};
        for (int i = 0; i < 2; i++) {
            const size_t size = plan(&c, isa, gemms[i], bf16, m, n, k, max_tasks, NULL);
            most = size > most ? size : most;
        }
    }
    return most;
}

const char *lowbit_lut4_linear_ukernel(lowbit_dtype x, size_t m, size_t k, size_t blocksize) {
    const uint32_t isa = lowbit_cpu_isa();
    if (!isa)
        return NULL;
    const struct lowbit_lut4_gemm *gemm = lowbit_lut4_select_gemm(isa, x, m, k, blocksize);
    if (gemm)
        return gemm->name;
    const struct lowbit_dense_gemm *dense =
        x == LOWBIT_BFLOAT16 ? lowbit_dense_select_gemm(isa, LOWBIT_BFLOAT16) : NULL;
    return (dense ? dense : lowbit_dense_select_gemm(isa, LOWBIT_FLOAT32))->name;
}

static lowbit_status check(const lowbit_lut4_linear_args *args, const lowbit_executor *executor) {
    LOWBIT_TRY(lowbit_check_executor(op, executor));
    if (!args)
        return lowbit_fail(LOWBIT_INVALID_ARGUMENT, "%s: args is null", op);
    LOWBIT_TRY(lowbit_check_tensor(op, "x", args->x, LOWBIT_FLOAT_DTYPES, LOWBIT_ANY, LOWBIT_ANY));
    LOWBIT_TRY(
        lowbit_check_tensor(op, "y", args->y, LOWBIT_FLOAT_DTYPES, args->x->rows, LOWBIT_ANY));
    const size_t n = args->y->cols;
    LOWBIT_TRY(lowbit_lut4_check_weight(op, &args->weight, n, args->x->cols, executor));
    return args->bias ? lowbit_check_vector(op, "bias", args->bias, LOWBIT_FLOAT_DTYPES, n)
                      : LOWBIT_OK;
}

// How many pieces of x can be arranged on their own: rows, or STAGING_K columns of UNIT_M rows.
static size_t x_pieces(const struct linear *c) {
    const lowbit_tensor *x = c->args->x;
    if (c->gemm->x_layout == LOWBIT_LUT4_ROWS)
        return x->rows;
    return (x->rows + UNIT_M - 1) / UNIT_M * ((x->cols + STAGING_K - 1) / STAGING_K);
}

static void arrange_piece(const struct linear *c, const struct scratch *scratch, size_t piece) {
    const lowbit_tensor *x = c->args->x;
    lowbit_lut4_arrange_ukernel *arrange = c->gemm->arrange[x->dtype];
    if (c->gemm->x_layout == LOWBIT_LUT4_ROWS) {
        arrange(x->cols, lowbit_float_row(x, piece), (char *)c->x + piece * c->x_stride);
        return;
    }
#if defined(__x86_64__)
    const size_t across = (x->cols + STAGING_K - 1) / STAGING_K;
    const size_t m0 = piece / across * UNIT_M, k0 = piece % across * STAGING_K;
    const size_t m = x->rows - m0 < UNIT_M ? x->rows - m0 : UNIT_M;
    const size_t k = x->cols - k0 < STAGING_K ? x->cols - k0 : STAGING_K;
    for (size_t i = 0; i < m; i++)
        arrange(k, (const uint16_t *)lowbit_float_row(x, m0 + i) + k0,
                (char *)scratch->staging + i * STAGING_STRIDE);
    lowbit_dense_tiles__amx(
        m, lowbit_round_up(k, LOWBIT_LUT4_X_ALIGN) * sizeof(uint16_t), scratch->staging,
        STAGING_STRIDE, (char *)c->x + m0 / UNIT_M * c->x_stride + k0 * UNIT_M * sizeof(uint16_t));
#endif
}

static void prepare(void *arg, size_t task) {
    struct linear *c = arg;
    const lowbit_tensor *bias = c->args->bias;
    const size_t n = c->args->y->cols;
    if (task == 0 && bias)
        c->dense.load[bias->dtype](n, bias->data, c->bias);
    else if (task == 0)
        memset(c->bias, 0, n * sizeof *c->bias);
    if (c->gemm)
        for (size_t piece; (piece = atomic_fetch_add(&c->next, 1)) < x_pieces(c);)
            arrange_piece(c, &c->scratch[task], piece);
}

// Few rows of x: all of them against one tile of the weight, while the next one is fetched.
static void run_tile(const struct linear *c, const struct scratch *scratch, size_t tile,
                     size_t next) {
    const lowbit_lut4_weight *weight = &c->args->weight;
    const lowbit_tensor *y = c->args->y;
    const size_t nr = c->gemm->nr, n0 = tile * nr, k = c->args->x->cols;
    const size_t n = y->cols - n0 < nr ? y->cols - n0 : nr;
    const size_t blocks = k / weight->blocksize;
    const uint8_t *packed = (const uint8_t *)weight->packed->data + n0 * (k / 2);
    // While the scales are computed the memory need not rest.
    lowbit_prefetch(packed, n * (k / 2) < FETCH ? n * (k / 2) : FETCH);
    // In calls of as many rows, or one unit less: few rows alone are summed in another order, and a
    // row's result must not depend on its place.
    size_t calls = (y->rows + c->gemm->mr - 1) / c->gemm->mr;
    const size_t unit = c->gemm->x_layout == LOWBIT_LUT4_TILES ? UNIT_M : 1;
    struct lowbit_lut4_gemm_args gemm = {
        .n = n,
        .k = k,
        .x_stride = c->x_stride,
        .packed = packed,
        .codebook = weight->codebook->data,
        .s = lowbit_lut4_scales(weight, &c->ukernels, n0 * blocks, n * blocks, scratch->scales),
        .s_stride = blocks,
        .blocksize = weight->blocksize,
        .acc_stride = nr,
    };
    if (next * nr < y->cols) {
        gemm.prefetch = (const uint8_t *)weight->packed->data + next * nr * (k / 2);
        gemm.prefetch_size = (y->cols - next * nr < nr ? y->cols - next * nr : nr) * (k / 2);
    }
    for (size_t m = 0; m < y->rows; m += gemm.m, calls--) {
        const size_t left = y->rows - m, height = lowbit_round_up((left + calls - 1) / calls, unit);
        gemm.m = left < height ? left : height;
        gemm.x = (const char *)c->x + m / unit * c->x_stride;
        gemm.acc = scratch->acc + m * nr;
        c->gemm->run(&gemm);
    }
    for (size_t m = 0; m < y->rows; m++) {
        float *sums = scratch->acc + m * nr;
        for (size_t i = 0; i < n; i++)
            sums[i] += c->bias[n0 + i];
        c->dense.store[y->dtype](n, sums, 0.0f,
                                 (char *)lowbit_float_row(y, m) +
                                     n0 * lowbit_float_size((enum lowbit_float)y->dtype));
    }
}

// Tiles are taken one ahead, so that each knows which follows it.
static void run_tiles(void *arg, size_t task) {
    struct linear *c = arg;
    size_t tile = atomic_fetch_add(&c->next, 1);
    while (tile * c->gemm->nr < c->args->y->cols) {
        const size_t next = atomic_fetch_add(&c->next, 1);
        run_tile(c, &c->scratch[task], tile, next);
        tile = next;
    }
}

// Many rows of x: rows k0 to k0 + k and columns n0 to n0 + n of the transposed weight.
static void fill(void *ctx, size_t task, size_t k0, size_t k, size_t n0, size_t n, void *panel,
                 size_t stride) {
    const struct linear *c = ctx;
    const struct scratch *scratch = &c->scratch[task];
    const uint8_t *packed = c->args->weight.packed->data;
    const bool bf16 = c->product.gemm->type == LOWBIT_BFLOAT16;
    const size_t dwords = bf16 ? (k + 1) / 2 : k;
    for (size_t i = 0; i < n; i += GROUP) {
        const size_t rows = n - i < GROUP ? n - i : GROUP;
        for (size_t row = 0; row < rows; row++) {
            const size_t begin = (n0 + i + row) * c->args->x->cols + k0;
            if (i + row + GROUP < n)
                lowbit_prefetch(packed + (begin + GROUP * c->args->x->cols) / 2, k / 2);
            uint32_t *to = (uint32_t *)scratch->rows + row * PANEL_K;
            if (bf16 && k % 2)
                to[k / 2] = 0; // the upper half of the last pair
            lowbit_lut4_read(&c->args->weight, &c->ukernels, c->product.gemm->type, begin, k,
                             scratch->scales, to);
        }
        c->dense.transpose(rows, dwords, scratch->rows, PANEL_K, (uint32_t *)panel + i, stride);
    }
}

lowbit_status lowbit_lut4_linear(const lowbit_lut4_linear_args *args,
                                 const lowbit_executor *executor, void *workspace,
                                 size_t workspace_size) {
    LOWBIT_TRY(check(args, executor));
    LOWBIT_ON_CUDA(executor, lowbit_lut4_linear_cuda(op, args, executor->cuda_stream, workspace,
                                                     workspace_size));
    const size_t m = args->x->rows, n = args->y->cols, k = args->x->cols;
    const uint32_t isa = lowbit_cpu_isa();
    const size_t max_tasks = lowbit_max_tasks(executor);
    LOWBIT_TRY(lowbit_check_workspace(op, workspace, workspace_size,
                                      lowbit_lut4_linear_workspace_size(m, n, k, max_tasks)));
    struct linear c = {.args = args};
    plan(&c, isa, lowbit_lut4_select_gemm(isa, args->x->dtype, m, k, args->weight.blocksize),
         args->x->dtype == LOWBIT_BFLOAT16, m, n, k, max_tasks, workspace);
    const double elements = (double)m * (double)k;
    lowbit_parallel(executor, c.gemm ? lowbit_task_count(executor, x_pieces(&c), elements) : 1,
                    prepare, &c);
    if (!c.gemm) {
        const struct lowbit_panel_product_args product = {
            .x = args->x, .y = args->y, .start = c.bias, .fill = fill, .ctx = &c};
        lowbit_panel_product_run(&c.product, &product, executor);
        return LOWBIT_OK;
    }
    // On one core a cold weight comes at about 8 GB/s, and 30 G multiply-adds take a second.
    const double products = (double)n * (double)k;
    atomic_store(&c.next, 0);
    lowbit_parallel(executor,
                    lowbit_task_count(executor, (n + c.gemm->nr - 1) / c.gemm->nr,
                                      products / 16 + products * (double)m / 30),
                    run_tiles, &c);
    return LOWBIT_OK;
}
