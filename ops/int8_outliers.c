// SPDX-License-Identifier: MIT

#include "int8_outliers.h"

#include <math.h>
#include <string.h>

enum {
    ROWS = LOWBIT_INT8_FMA_ROWS,
    BLOCK = LOWBIT_INT8_OUTLIER_BLOCK,
    PANEL = 1024, // columns of a pass, at least BLOCK
    TILE_N = LOWBIT_INT8_TILE_N,
    BLOCK_WORDS = BLOCK / 64,
};

void lowbit_int8_outliers_plan(struct lowbit_int8_outliers *c, size_t m, size_t k, size_t max_tasks,
                               lowbit_arena *arena) {
    c->groups = (m + ROWS - 1) / ROWS;
    c->blocks = (k + BLOCK - 1) / BLOCK;
    c->words = (k + 63) / 64;
    c->k = k;
    c->passes = 0;
    c->group = lowbit_take(arena, c->groups * sizeof *c->group);
    c->pass = lowbit_take(arena, c->blocks * sizeof *c->pass);
    c->column = lowbit_take(arena, k * sizeof *c->column);
    c->slot = lowbit_take(arena, k * sizeof *c->slot);
    c->scratch = lowbit_take(arena, max_tasks * sizeof *c->scratch);
    for (size_t i = 0; i < max_tasks; i++) {
        struct lowbit_int8_outlier_scratch scratch = {
            .mask = lowbit_take(arena, ROWS * c->words * sizeof *scratch.mask),
            .panel = lowbit_take(arena, sizeof(float[PANEL][TILE_N])),
            .o = lowbit_take(arena, c->groups * sizeof(float[ROWS][TILE_N])),
        };
        if (arena->base)
            c->scratch[i] = scratch;
    }
    for (size_t g = 0; g < c->groups; g++) {
        struct lowbit_int8_group group = {
            .mask = lowbit_take(arena, c->words * sizeof *group.mask),
            .begin = lowbit_take(arena, (c->blocks + 1) * sizeof *group.begin),
            .index = lowbit_take(arena, k * sizeof *group.index),
            .x = lowbit_take(arena, k * sizeof(float[ROWS])),
        };
        if (arena->base)
            c->group[g] = group;
    }
}

void lowbit_int8_outliers_list(const struct lowbit_int8_outliers *c, size_t g, size_t rows,
                               const uint64_t *mask,
                               float (*value)(void *ctx, size_t row, size_t k), void *ctx) {
    struct lowbit_int8_group *group = &c->group[g];
    uint32_t count = 0;
    for (size_t word = 0; word < c->words; word++) {
        if (word % BLOCK_WORDS == 0)
            group->begin[word / BLOCK_WORDS] = count;
        uint64_t any = 0;
        for (size_t row = 0; row < rows; row++)
            any |= mask[row * c->words + word];
        group->mask[word] = any;
        for (; any; any &= any - 1, count++) {
            const unsigned bit = (unsigned)__builtin_ctzll(any);
            group->index[count] = (uint32_t)(word * 64 + bit);
            for (size_t row = 0; row < ROWS; row++) {
                const bool outlier = row < rows && mask[row * c->words + word] >> bit & 1;
                group->x[count * ROWS + row] = outlier ? value(ctx, row, word * 64 + bit) : 0.0f;
            }
        }
    }
    group->begin[c->blocks] = count;
}

// Lists the columns of block b that any group has, from column[first] on, and returns their number.
// When they are many, all columns of the block: a run of columns is dequantized some 16 times
// faster than as many single ones.
static size_t join_block(struct lowbit_int8_outliers *c, size_t b, size_t first) {
    uint64_t any[BLOCK_WORDS] = {0};
    const size_t word0 = b * BLOCK_WORDS, k0 = b * BLOCK;
    const size_t words = c->words - word0 < BLOCK_WORDS ? c->words - word0 : BLOCK_WORDS;
    const size_t width = c->k - k0 < BLOCK ? c->k - k0 : BLOCK;
    for (size_t g = 0; g < c->groups; g++)
        for (size_t word = 0; word < words; word++)
            any[word] |= c->group[g].mask[word0 + word];
    size_t columns = 0;
    for (size_t word = 0; word < words; word++)
        columns += (size_t)__builtin_popcountll(any[word]);
    const bool all = columns > width / 16;
    columns = first;
    for (size_t i = 0; i < width; i++)
        if (all || any[i / 64] >> i % 64 & 1) {
            c->slot[k0 + i] = (uint32_t)columns;
            c->column[columns++] = (uint32_t)(k0 + i);
        }
    return columns - first;
}

void lowbit_int8_outliers_join(struct lowbit_int8_outliers *c) {
    struct lowbit_int8_pass pass = {0, 0, 0, 0};
    c->passes = 0;
    for (size_t b = 0; b < c->blocks; b++) {
        size_t columns = join_block(c, b, pass.first_column + pass.columns);
        if (pass.columns + columns > PANEL) {
            c->pass[c->passes++] = pass;
            pass.first_block = b;
            pass.first_column += pass.columns;
            pass.columns = 0;
        }
        pass.last_block = b + 1;
        pass.columns += columns;
    }
    if (pass.columns)
        c->pass[c->passes++] = pass;
    for (size_t i = 0; i < c->passes; i++)
        for (size_t g = 0; g < c->groups; g++) {
            struct lowbit_int8_group *group = &c->group[g];
            for (size_t j = group->begin[c->pass[i].first_block];
                 j < group->begin[c->pass[i].last_block]; j++)
                group->index[j] = c->slot[group->index[j]] - (uint32_t)c->pass[i].first_column;
        }
}

// Dequantizes the columns of a pass, run by run.
static void build_panel(const struct lowbit_int8_outliers *c, const struct lowbit_int8_pass *pass,
                        lowbit_int8_panel_ukernel *dequantize, size_t n, const int8_t *w,
                        const float *s, const float *offset, float *panel) {
    const uint32_t *column = c->column + pass->first_column;
    for (size_t i = 0, run; i < pass->columns; i += run) {
        for (run = 1; i + run < pass->columns && column[i + run] == column[i] + run;)
            run++;
        dequantize(n, run, w + column[i], c->k, s, offset, panel + i * TILE_N, TILE_N);
    }
}

void lowbit_int8_outliers_multiply(const struct lowbit_int8_outliers *c,
                                   const struct lowbit_int8_ukernels *ukernels, size_t task,
                                   size_t m, size_t n, const int8_t *w, const float *s,
                                   const float *offset) {
    const struct lowbit_int8_outlier_scratch *scratch = &c->scratch[task];
    bool finite = true;
    for (size_t i = 0; i < n; i++) // no dequantized weight is larger than the sum of these
        finite &= fabsf(s[i]) < 1e36f && (!offset || fabsf(offset[i]) < 1e38f);
    memset(scratch->o, 0, m * sizeof(float[TILE_N]));
    for (size_t i = 0; i < c->passes; i++) {
        const struct lowbit_int8_pass *pass = &c->pass[i];
        build_panel(c, pass, ukernels->panel, n, w, s, offset, scratch->panel);
        for (size_t g = 0; g < c->groups && g * ROWS < m; g++) {
            const struct lowbit_int8_fma_args args = {
                .m = m - g * ROWS < ROWS ? m - g * ROWS : ROWS,
                .n = n,
                .blocks = pass->last_block - pass->first_block,
                .begin = c->group[g].begin + pass->first_block,
                .index = c->group[g].index,
                .x = c->group[g].x,
                .panel = scratch->panel,
                .panel_stride = TILE_N,
                .o = scratch->o + g * ROWS * TILE_N,
                .o_stride = TILE_N,
                .finite = finite,
            };
            if (args.begin[0] != args.begin[args.blocks])
                ukernels->fma(&args);
        }
    }
}
