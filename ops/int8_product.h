// SPDX-License-Identifier: MIT
// The integer product that int8_matmul and int8_linear share: a block of rows of quantized x, tile
// by tile against the weight.
#ifndef LOWBIT_OPS_INT8_PRODUCT_H
#define LOWBIT_OPS_INT8_PRODUCT_H

#include "arena.h"
#include "int8_dispatch.h"
#include "parallel.h"

#include <stdatomic.h>

enum {
    LOWBIT_INT8_BLOCK_M = 1024, // rows of x that are quantized and multiplied at a time
    LOWBIT_INT8_UNIT_M = 16,    // rows of x that one thread prepares at a time
};

struct lowbit_int8_product {
    const struct lowbit_int8_gemm *gemm;
    size_t m, n, k; // m rows of x in this block
    const int8_t *weight;
    int8_t *x;         // quantized, in the gemm's layout
    size_t x_stride;   // bytes from row to row, or from 16 rows to the next 16
    int32_t *xsum;     // [m]
    size_t row_stride; // bytes from row to row while they are quantized
    struct lowbit_int8_scratch {
        int8_t *staging; // 16 rows before they are put into TILES layout, if the gemm wants that
        int8_t *panel;   // the packed weight, if the gemm wants it so
        int32_t *acc;    // [TILE_M][TILE_N]
    } *scratch;          // [tasks]
    // Takes the sums of m rows from m0 and n columns from n0 on; called by task, for each tile with
    // ascending m0.
    void (*finish)(void *ctx, size_t task, size_t m0, size_t m, size_t n0, size_t n,
                   const int32_t *acc);
    void *ctx;
    atomic_size_t next_tile;
};

// Chooses the gemm and takes the buffers for blocks of up to min(m, 1024) rows from the arena.
// Fills everything but weight, finish and ctx; with an arena that only measures, no pointer is
// valid.
void lowbit_int8_product_plan(struct lowbit_int8_product *product, uint32_t isa, size_t m, size_t n,
                              size_t k, bool full_range, size_t max_tasks, lowbit_arena *arena);

// Where the codes of row m, a row of task's unit, go; then, when all rows of the unit that starts
// at m0 are written, lowbit_int8_product_store puts them where the gemm wants them.
int8_t *lowbit_int8_product_row(const struct lowbit_int8_product *product, size_t task, size_t m);
void lowbit_int8_product_store(const struct lowbit_int8_product *product, size_t task, size_t m0);

void lowbit_int8_product_run(struct lowbit_int8_product *product, const lowbit_executor *executor);

#endif
