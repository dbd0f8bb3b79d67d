// SPDX-License-Identifier: MIT
// The fp32 part of int8_linear: products of the outliers of a block of rows with dequantized
// columns of the weight.
//
// Rows of x go in groups of 4. While x is quantized, each group lists the columns in which any of
// its rows has an outlier, with the 4 values (+0 where a row has none). Then the union of all
// groups' columns is cut into passes of at most 1024, so that a pass's columns of one tile of the
// weight, dequantized and transposed, make a small panel. Each tile builds the panel of each pass
// once and adds the products of every group's list.
#ifndef LOWBIT_OPS_INT8_OUTLIERS_H
#define LOWBIT_OPS_INT8_OUTLIERS_H

#include "arena.h"
#include "int8_dispatch.h"

struct lowbit_int8_outliers {
    size_t groups, blocks, words, k; // words: 64-bit words of a mask of K columns
    size_t passes;                   // 0: no outliers at all
    struct lowbit_int8_group {
        uint64_t *mask;  // [words], columns with an outlier
        uint32_t *begin; // [blocks + 1], where each block's part of the list starts
        uint32_t *index; // [k], the columns; after join: the rows of the pass's panel
        float *x;        // [k][4]
    } *group;            // [groups]
    struct lowbit_int8_pass {
        size_t first_block, last_block; // [first, last)
        size_t first_column, columns;   // into column
    } *pass;                            // [blocks]
    uint32_t *column;                   // [k], the columns of all passes, ascending
    uint32_t *slot;                     // [k], the inverse
    struct lowbit_int8_outlier_scratch {
        uint64_t *mask; // [4][words], one for each row of a group
        float *panel;   // [1024][TILE_N]
        float *o;       // [rows of the block][TILE_N]
    } *scratch;         // [tasks]
};

// Takes the buffers for up to m rows.
void lowbit_int8_outliers_plan(struct lowbit_int8_outliers *outliers, size_t m, size_t k,
                               size_t max_tasks, lowbit_arena *arena);

// Makes group's list from the masks of its rows in mask; value(ctx, row, k) is an element of x.
void lowbit_int8_outliers_list(const struct lowbit_int8_outliers *outliers, size_t group,
                               size_t rows, const uint64_t *mask,
                               float (*value)(void *ctx, size_t row, size_t k), void *ctx);

// Once every group has its list: the passes.
void lowbit_int8_outliers_join(struct lowbit_int8_outliers *outliers);

// o of all m rows and the n columns whose weight rows start at w, into the task's scratch.
void lowbit_int8_outliers_multiply(const struct lowbit_int8_outliers *outliers,
                                   const struct lowbit_int8_ukernels *ukernels, size_t task,
                                   size_t m, size_t n, const int8_t *w, const float *s,
                                   const float *offset);

#endif
