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
    TILE = 256,         // most columns of a panel, and how far apart its rows are
};

_Static_assert(sizeof(uint32_t[BLOCK_R_BF16 / 2][TILE]) == sizeof(float[BLOCK_R][TILE]),
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

// Row m's piece of a block of r. The pieces of all rows follow each other, as the products read
// them.
static void *x_piece(const struct lowbit_panel_product *p, size_t m, size_t r0) {
    return (char *)p->x + (r0 * p->rows + m * p->block_r) * x_size(p);
}

void lowbit_panel_product_plan(struct lowbit_panel_product *p, uint32_t isa, bool bf16, size_t m,
                               size_t r, size_t max_tasks, lowbit_arena *arena) {
    p->rows = lowbit_round_up(m < BLOCK_M ? m : BLOCK_M, 16);
    p->ukernels = lowbit_dense_select_ukernels(isa);
    p->gemm = bf16 ? lowbit_dense_select_gemm(isa, LOWBIT_BFLOAT16) : NULL;
    if (!p->gemm)
        p->gemm = lowbit_dense_select_gemm(isa, LOWBIT_FLOAT32);
    p->block_r = p->gemm->type == LOWBIT_BFLOAT16 ? BLOCK_R_BF16 : BLOCK_R;
    p->x = lowbit_take(arena, lowbit_round_up(r, p->block_r) * p->rows * x_size(p));
    p->base = lowbit_take(arena, p->rows * sizeof *p->base);
    p->scratch = lowbit_take(arena, max_tasks * sizeof *p->scratch);
    for (size_t i = 0; i < max_tasks; i++) {
        struct lowbit_panel_scratch scratch = {
            .panel = lowbit_take(arena, sizeof(float[BLOCK_R][TILE])),
            .start = lowbit_take(arena, sizeof(float[TILE])),
            .sum = lowbit_take(arena, p->rows * sizeof(float[TILE])),
        };
        if (arena->base)
            p->scratch[i] = scratch;
    }
}

static void prepare_row(const struct run *run, size_t m) {
    const struct lowbit_panel_product *p = run->plan;
    const struct lowbit_panel_product_args *args = run->args;
    const size_t rows = args->x->cols;
    const char *from = lowbit_float_row(args->x, run->block + m);
    p->base[m] = 0.0f;
    for (size_t r0 = 0; r0 < rows; r0 += p->block_r) {
        const size_t r = rows - r0 < p->block_r ? rows - r0 : p->block_r;
        const void *x = from + r0 * lowbit_float_size((enum lowbit_float)args->x->dtype);
        void *to = x_piece(p, m, r0);
        if (!run->bf16) {
            p->ukernels.load[args->x->dtype](r, x, to);
            continue;
        }
        if (args->row)
            p->base[m] += args->row(args->ctx, r0, r, x, to);
        else
            memcpy(to, x, r * sizeof(uint16_t));
        memset((uint16_t *)to + r, 0, (p->block_r - r) * sizeof(uint16_t));
    }
}

static void prepare_rows(void *arg, size_t task) {
    struct run *run = arg;
    (void)task;
    for (size_t m; (m = atomic_fetch_add(&run->next, 1)) < run->m;)
        prepare_row(run, m);
}

// All rows of the block times a panel, the first or a later one of the sum.
static void multiply(const struct run *run, const struct lowbit_panel_scratch *scratch, size_t r0,
                     size_t r, size_t c) {
    const struct lowbit_panel_product *p = run->plan;
    // Groups of equal height: a last one of few rows runs at half speed. Tiles are taken whole.
    const size_t groups = (run->m + p->gemm->mr - 1) / p->gemm->mr;
    const size_t mr = p->gemm->mr % 16 ? (run->m + groups - 1) / groups : p->gemm->mr;
    for (size_t m0 = 0; m0 < run->m; m0 += mr) {
        float *sum = scratch->sum + m0 * TILE;
        const struct lowbit_dense_gemm_args gemm = {
            .m = run->m - m0 < mr ? run->m - m0 : mr,
            .c = c,
            .r = r,
            .x = x_piece(p, m0, r0),
            .x_stride = p->block_r,
            .panel = scratch->panel,
            .start = r0 ? sum : scratch->start,
            .start_stride = r0 ? TILE : 0,
            .sum = sum,
            .stride = TILE,
        };
        for (size_t m = m0 + mr; m < run->m && m < m0 + 2 * mr; m++) { // the next rows
            lowbit_prefetch(x_piece(p, m, r0), r * x_size(p));
            lowbit_prefetch(scratch->sum + m * TILE, c * sizeof(float));
        }
        p->gemm->run(&gemm);
    }
}

static void run_tile(const struct run *run, size_t task, size_t c0, size_t c) {
    const struct lowbit_panel_product_args *args = run->args;
    const struct lowbit_panel_scratch *scratch = &run->plan->scratch[task];
    const size_t rows = args->x->cols, block = run->plan->block_r;
    memset(scratch->start, 0, sizeof(float[TILE]));
    if (args->start)
        memcpy(scratch->start, args->start + c0, c * sizeof *args->start);
    size_t r0 = 0;
    do { // also when there are no rows: y is start then
        size_t r = rows - r0 < block ? rows - r0 : block;
        if (r)
            args->fill(args->ctx, task, r0, r, c0, c, scratch->panel, TILE);
        if (run->bf16) {
            const size_t pairs = (r + 1) / 2;
            r = lowbit_round_up(r, 32);
            memset((uint32_t *)scratch->panel + pairs * TILE, 0,
                   (r / 2 - pairs) * sizeof(uint32_t[TILE]));
        }
        multiply(run, scratch, r0, r, c);
        r0 += block;
    } while (r0 < rows);
    const size_t left = c0 * lowbit_float_size((enum lowbit_float)args->y->dtype); // bytes
    for (size_t m = 0; m < run->m; m++)
        run->plan->ukernels.store[args->y->dtype](
            c, scratch->sum + m * TILE, run->plan->base[m],
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
