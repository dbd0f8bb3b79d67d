// SPDX-License-Identifier: MIT
// The product of a float matrix with a matrix that exists only piece by piece: a quantized weight,
// dequantized on its way into the product.
//
//   y[m][c] = (start[c] + sum over r of x[m][r] * w[r][c]) + base[m]
//
// w is made in panels, as many rows as are summed at once and as many columns as a tile of y has.
// A task takes a tile of columns, and for one panel after the other calls fill to make it and the
// gemm to multiply all rows of x with it, while the panel is in the second-level cache. So each
// element of w is made once for 1,024 rows of x.
#ifndef LOWBIT_OPS_PANEL_PRODUCT_H
#define LOWBIT_OPS_PANEL_PRODUCT_H

#include "arena.h"
#include "dense_dispatch.h"

#include "lowbit/executor.h"
#include "lowbit/tensor.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

// Asks for memory that is read soon, into the second-level cache. A fill should, some rows ahead:
// rows of a weight lie too far apart for the processor to see what comes next.
static inline void lowbit_prefetch(const void *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const char *)from + i, 0, 2);
}

struct lowbit_panel_product_args {
    const lowbit_tensor *x, *y; // [M, R] and [M, C], of any float types
    const float *start;         // [C] or null for +0
    // Makes rows r0 to r0 + r and columns c0 to c0 + c of w: as float panel[r][stride], or, for a
    // product of bf16, as uint32_t panel[ceil(r / 2)][stride] with two rows side by side, the even
    // one in the lower half, and zeros after the last. r0 is a multiple of 256, c0 of 64; r and c
    // are positive and at most 512 and 256.
    void (*fill)(void *ctx, size_t task, size_t r0, size_t r, size_t c0, size_t c, void *panel,
                 size_t stride);
    // For a product of bf16: makes elements r0 to r0 + r of a row, given as x, and returns their
    // part of the row's base. Null: bfloat16 x as it is, +0.
    float (*row)(void *ctx, size_t r0, size_t r, const void *x, uint16_t *to);
    void *ctx;
};

// What plan decides.
struct lowbit_panel_product {
    const struct lowbit_dense_gemm *gemm; // its type says what x and the panels are made of
    struct lowbit_dense_ukernels ukernels;
    size_t rows, block_r; // rows of x at a time, and of w in a panel
    void *x;              // float or uint16_t [R / block_r][rows][block_r]
    float *base;          // [rows]
    struct lowbit_panel_scratch {
        void *panel;
        float *start, *sum; // of a tile's columns, [] and [rows][]
    } *scratch;             // [tasks]
};

// Chooses the gemm, of bf16 numbers if bf16 and the processor can, and takes the buffers for m rows
// of r elements from the arena; with one that only measures, no pointer is valid.
void lowbit_panel_product_plan(struct lowbit_panel_product *product, uint32_t isa, bool bf16,
                               size_t m, size_t r, size_t max_tasks, lowbit_arena *arena);

void lowbit_panel_product_run(const struct lowbit_panel_product *product,
                              const struct lowbit_panel_product_args *args,
                              const lowbit_executor *executor);

#ifdef __cplusplus
}
#endif

#endif
