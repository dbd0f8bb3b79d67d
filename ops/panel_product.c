// SPDX-License-Identifier: MIT

#include "panel_product.h"

#include "floats.h"
#include "parallel.h"

#include <stdatomic.h>
#include <string.h>

enum {
    BLOCK_M = 1024,     // rows of x at a time
    BLOCK_R = 256,      // rows of a panel of floats, whose products are summed on their own
    BLOCK_R_BF16 = 512, // of a panel of bf16 numbers
    TILE = 256,         // most columns of a panel
    STRIDE = TILE + 64, // keeps its rows off each other's cache sets
};

_Static_assert(sizeof(uint32_t[BLOCK_R_BF16 / 2][STRIDE]) == sizeof(float[BLOCK_R][STRIDE]),
               "both kinds of panel fit into one buffer");

struct run {
    const struct lowbit_panel_product *plan;
    const struct lowbit_panel_product_args *args;
    bool bf16;
    size_t tile;     // columns of a tile
    size_t block, m; // the first row of the current block, and its rows
    atomic_size_t next;
};

static size_t x_size(const struct lowbit_panel_product *p) {
    return lowbit_float_size((enum lowbit_float)p->gemm->type);
}

static void *x_element(const struct lowbit_panel_product *p, size_t m, size_t r) {
    return (char *)p->x + (m * p->x_stride + r) * x_size(p);
}

void lowbit_panel_product_plan(struct lowbit_panel_product *p, uint32_t isa, bool bf16, size_t m,
                               size_t r, size_t max_tasks, lowbit_arena *arena) {
    const size_t rows = lowbit_round_up(m < BLOCK_M ? m : BLOCK_M, 16);
    p->ukernels = lowbit_dense_select_ukernels(isa);
    p->gemm = bf16 ? lowbit_dense_select_gemm(isa, LOWBIT_BFLOAT16) : NULL;
    if (!p->gemm)
        p->gemm = lowbit_dense_select_gemm(isa, LOWBIT_FLOAT32);
    // A line more keeps rows of 2048 elements off each other's cache sets.
    p->x_stride = lowbit_round_up(r, 32) + 32;
    p->x = lowbit_take(arena, rows * p->x_stride * x_size(p));
    p->base = lowbit_take(arena, rows * sizeof *p->base);
    p->scratch = lowbit_take(arena, max_tasks * sizeof *p->scratch);
    for (size_t i = 0; i < max_tasks; i++) {
        struct lowbit_panel_scratch scratch = {
            .panel = lowbit_take(arena, sizeof(float[BLOCK_R][STRIDE])),
            .start = lowbit_take(arena, sizeof(float[STRIDE])),
            .sum = lowbit_take(arena, rows * sizeof(float[STRIDE])),
        };
        if (arena->base)
            p->scratch[i] = scratch;
    }
}

static void prepare_rows(void *arg, size_t task) {
    struct run *run = arg;
    const struct lowbit_panel_product *p = run->plan;
    const struct lowbit_panel_product_args *args = run->args;
    const size_t r = args->x->cols;
    (void)task;
    for (size_t m; (m = atomic_fetch_add(&run->next, 1)) < run->m;) {
        const void *from = lowbit_float_row(args->x, run->block + m);
        void *to = x_element(p, m, 0);
        p->base[m] = 0.0f;
        if (!run->bf16)
            p->ukernels.load[args->x->dtype](r, from, to);
        else if (args->row)
            p->base[m] = args->row(args->ctx, from, to);
        else if (r) // without columns x may have no data
            memcpy(to, from, r * sizeof(uint16_t));
        if (run->bf16)
            memset(x_element(p, m, r), 0, (p->x_stride - r) * sizeof(uint16_t));
    }
}

// All rows of the block times a panel, the first or a later one of the sum.
static void multiply(const struct run *run, const struct lowbit_panel_scratch *scratch, size_t r0,
                     size_t r, size_t c) {
    const struct lowbit_panel_product *p = run->plan;
    const size_t mr = p->gemm->mr;
    for (size_t m0 = 0; m0 < run->m; m0 += mr) {
        float *sum = scratch->sum + m0 * STRIDE;
        const struct lowbit_dense_gemm_args gemm = {
            .m = run->m - m0 < mr ? run->m - m0 : mr,
            .c = c,
            .r = r,
            .x = x_element(p, m0, r0),
            .x_stride = p->x_stride,
            .panel = scratch->panel,
            .start = r0 ? sum : scratch->start,
            .start_stride = r0 ? STRIDE : 0,
            .sum = sum,
            .stride = STRIDE,
        };
        p->gemm->run(&gemm);
    }
}

static void run_tile(const struct run *run, size_t task, size_t c0, size_t c) {
    const struct lowbit_panel_product_args *args = run->args;
    const struct lowbit_panel_scratch *scratch = &run->plan->scratch[task];
    const size_t rows = args->x->cols, block = run->bf16 ? BLOCK_R_BF16 : BLOCK_R;
    memset(scratch->start, 0, sizeof(float[STRIDE]));
    if (args->start)
        memcpy(scratch->start, args->start + c0, c * sizeof *args->start);
    size_t r0 = 0;
    do { // also when there are no rows: y is start then
        size_t r = rows - r0 < block ? rows - r0 : block;
        args->fill(args->ctx, task, r0, r, c0, c, scratch->panel, STRIDE);
        if (run->bf16) {
            const size_t pairs = (r + 1) / 2;
            r = lowbit_round_up(r, 32);
            memset((uint32_t *)scratch->panel + pairs * STRIDE, 0,
                   (r / 2 - pairs) * sizeof(uint32_t[STRIDE]));
        }
        multiply(run, scratch, r0, r, c);
        r0 += block;
    } while (r0 < rows);
    const size_t left = c0 * lowbit_float_size((enum lowbit_float)args->y->dtype); // bytes
    for (size_t m = 0; m < run->m; m++)
        run->plan->ukernels.store[args->y->dtype](
            c, scratch->sum + m * STRIDE, run->plan->base[m],
            (char *)lowbit_float_row(args->y, run->block + m) + left);
}

static void run_tiles(void *arg, size_t task) {
    struct run *run = arg;
    const size_t c = run->args->y->cols;
    for (size_t c0; (c0 = run->tile * atomic_fetch_add(&run->next, 1)) < c;)
        run_tile(run, task, c0, c - c0 < run->tile ? c - c0 : run->tile);
}

void lowbit_panel_product_run(const struct lowbit_panel_product *p,
                              const struct lowbit_panel_product_args *args,
                              const lowbit_executor *executor) {
    const size_t m = args->x->rows, r = args->x->cols, c = args->y->cols;
    // The widest tiles of which every task gets as many.
    const size_t tasks = lowbit_max_tasks(executor);
    const size_t rounds = (c + TILE * tasks - 1) / (TILE * tasks) + !c;
    const size_t share = lowbit_round_up(c / (rounds * tasks) + 1, 64);
    struct run run = {.plan = p,
                      .args = args,
                      .bf16 = p->gemm->type == LOWBIT_BFLOAT16,
                      .tile = share < TILE ? share : TILE};
    for (run.block = 0; run.block < m; run.block += BLOCK_M) {
        run.m = m - run.block < BLOCK_M ? m - run.block : BLOCK_M;
        const size_t tiles = (c + run.tile - 1) / run.tile;
        const double elements = (double)r * (double)c, x = (double)run.m * (double)r;
        atomic_store(&run.next, 0);
        lowbit_parallel(executor, lowbit_task_count(executor, run.m, x / 4), prepare_rows, &run);
        atomic_store(&run.next, 0);
        lowbit_parallel(
            executor, lowbit_task_count(executor, tiles, elements + (double)run.m * elements / 50),
            run_tiles, &run);
    }
}
