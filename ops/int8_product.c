// SPDX-License-Identifier: MIT

#include "int8_product.h"

#include "../kernels/cpu/dense/ukernels.h"

#include <string.h>

void lowbit_int8_product_plan(struct lowbit_int8_product *p, uint32_t isa, size_t m, size_t n,
                              size_t k, bool full_range, size_t max_tasks, lowbit_arena *arena) {
    const size_t block = m < LOWBIT_INT8_BLOCK_M ? m : LOWBIT_INT8_BLOCK_M;
    p->gemm = lowbit_int8_select_gemm(isa, m, full_range);
    p->m = block;
    p->n = n;
    p->k = k;
    const bool tiles = p->gemm->x_layout == LOWBIT_INT8_TILES;
    // A line more than K keeps rows of K = 4096 off each other's cache sets.
    p->row_stride = lowbit_round_up(k, 64) + 64;
    p->x_stride = tiles ? LOWBIT_INT8_UNIT_M * lowbit_round_up(k, 64) : p->row_stride;
    p->x = lowbit_take(arena, tiles ? lowbit_round_up(block, LOWBIT_INT8_UNIT_M) /
                                          LOWBIT_INT8_UNIT_M * p->x_stride
                                    : block * p->row_stride);
    p->xsum = lowbit_take(arena, block * sizeof *p->xsum);
    p->scratch = lowbit_take(arena, max_tasks * sizeof *p->scratch);
    for (size_t task = 0; task < max_tasks; task++) {
        struct lowbit_int8_scratch scratch = {
            .staging = tiles ? lowbit_take(arena, LOWBIT_INT8_UNIT_M * p->row_stride) : NULL,
            .panel = p->gemm->pack ? lowbit_take(arena, LOWBIT_INT8_TILE_N * lowbit_round_up(k, 4))
                                   : NULL,
            .acc = lowbit_take(arena, sizeof(int32_t[LOWBIT_INT8_TILE_M][LOWBIT_INT8_TILE_N])),
        };
        if (arena->base)
            p->scratch[task] = scratch;
    }
}

int8_t *lowbit_int8_product_row(const struct lowbit_int8_product *p, size_t task, size_t m) {
    if (p->gemm->x_layout == LOWBIT_INT8_ROWS)
        return p->x + m * p->x_stride;
    return p->scratch[task].staging + m % LOWBIT_INT8_UNIT_M * p->row_stride;
}

void lowbit_int8_product_store(const struct lowbit_int8_product *p, size_t task, size_t m0) {
    const size_t m = p->m - m0 < LOWBIT_INT8_UNIT_M ? p->m - m0 : LOWBIT_INT8_UNIT_M;
    const size_t padded = lowbit_round_up(p->k, 64);
    for (size_t i = 0; i < m; i++)
        memset(lowbit_int8_product_row(p, task, m0 + i) + p->k, 0, padded - p->k);
#if defined(__x86_64__)
    if (p->gemm->x_layout == LOWBIT_INT8_TILES)
        lowbit_dense_tiles__amx(m, padded, p->scratch[task].staging, p->row_stride,
                                p->x + m0 / LOWBIT_INT8_UNIT_M * p->x_stride);
#endif
}

// Calls the gemm for m rows from m0 on.
static void multiply(const struct lowbit_int8_product *p, const struct lowbit_int8_scratch *scratch,
                     size_t m0, size_t m, size_t n0, size_t n, const int8_t *prefetch,
                     size_t prefetch_size) {
    const bool tiles = p->gemm->x_layout == LOWBIT_INT8_TILES;
    const struct lowbit_int8_gemm_args args = {
        .m = m,
        .n = n,
        .k = p->k,
        .x = p->x + (tiles ? m0 / LOWBIT_INT8_UNIT_M : m0) * p->x_stride,
        .x_stride = p->x_stride,
        .xsum = p->xsum + m0,
        .w = p->gemm->pack ? scratch->panel : p->weight + n0 * p->k,
        .w_stride = p->gemm->pack ? 0 : p->k,
        .acc = scratch->acc,
        .acc_stride = LOWBIT_INT8_TILE_N,
        .prefetch = prefetch,
        .prefetch_size = prefetch_size,
    };
    p->gemm->run(&args);
}

// One tile of the weight against all rows of the block, while the next tile is fetched.
static void run_tile(const struct lowbit_int8_product *p, size_t task, size_t tile, size_t next) {
    const struct lowbit_int8_scratch *scratch = &p->scratch[task];
    const size_t nr = p->gemm->nr, n0 = tile * nr, n = p->n - n0 < nr ? p->n - n0 : nr;
    // Steps of equal height, but whole units where x lies in tiles.
    size_t steps = (p->m + p->gemm->mr - 1) / p->gemm->mr, height = (p->m + steps - 1) / steps;
    if (p->gemm->x_layout == LOWBIT_INT8_TILES)
        height = p->gemm->mr;
    const int8_t *prefetch = NULL;
    size_t prefetch_size = 0;
    if (next * nr < p->n) {
        prefetch = p->weight + next * nr * p->k;
        prefetch_size = (p->n - next * nr < nr ? p->n - next * nr : nr) * p->k;
    }
    if (p->gemm->pack)
        p->gemm->pack(n, p->k, p->weight + n0 * p->k, p->k, scratch->panel);
    const size_t share = lowbit_round_up(prefetch_size / steps + 1, 64);
    for (size_t m0 = 0; m0 < p->m; m0 += height) {
        const size_t m = p->m - m0 < height ? p->m - m0 : height;
        const size_t size = share < prefetch_size ? share : prefetch_size;
        multiply(p, scratch, m0, m, n0, n, prefetch, size);
        p->finish(p->ctx, task, m0, m, n0, n, scratch->acc);
        prefetch = prefetch ? prefetch + size : NULL;
        prefetch_size -= size;
    }
}

// Tiles are taken one ahead, so that each knows which follows it.
static void run_tiles(void *arg, size_t task) {
    struct lowbit_int8_product *p = arg;
    size_t tile = atomic_fetch_add(&p->next_tile, 1);
    while (tile * p->gemm->nr < p->n) {
        size_t next = atomic_fetch_add(&p->next_tile, 1);
        run_tile(p, task, tile, next);
        tile = next;
    }
}

void lowbit_int8_product_run(struct lowbit_int8_product *p, const lowbit_executor *executor) {
    const size_t tiles = (p->n + p->gemm->nr - 1) / p->gemm->nr;
    // On one core a cold weight comes at about 8 GB/s, and 100 G multiply-adds take a second.
    const double products = (double)p->n * (double)p->k;
    const double nanoseconds = products / 8 + products * (double)p->m / 100;
    atomic_store(&p->next_tile, 0);
    lowbit_parallel(executor, lowbit_task_count(executor, tiles, nanoseconds), run_tiles, p);
}
