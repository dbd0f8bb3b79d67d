// SPDX-License-Identifier: MIT
// AMX in plain C for machines without it: the tile functions of <immintrin.h> that kernels use, as
// the Intel 64 and IA-32 Architectures Software Developer's Manual describes their instructions.
// What the processor answers with a fault ends the program with a message.
#ifndef LOWBIT_TESTS_EMULATION_AMX_H
#define LOWBIT_TESTS_EMULATION_AMX_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EMULATED_TILES = 8, EMULATED_ROWS = 16, EMULATED_ROW_BYTES = 64 };

struct emulated_tile {
    unsigned rows, row_bytes; // both 0: not configured
    int8_t data[EMULATED_ROWS][EMULATED_ROW_BYTES];
};

static __thread struct emulated_tile emulated_tiles[EMULATED_TILES];

static inline void emulated_check(int holds, const char *rule) {
    if (!holds) {
        fprintf(stderr, "AMX emulation: %s\n", rule);
        abort();
    }
}

static inline struct emulated_tile *emulated_tile(unsigned number) {
    emulated_check(number < EMULATED_TILES, "there are eight tiles");
    emulated_check(emulated_tiles[number].rows != 0, "the tile is not configured");
    return &emulated_tiles[number];
}

static inline void emulated_tile_release(void) {
    memset(emulated_tiles, 0, sizeof emulated_tiles);
}

static inline void emulated_tile_loadconfig(const void *memory) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config;
    memcpy(&config, memory, sizeof config);
    emulated_check(config.palette == 1 && config.start_row == 0,
                   "palette 1 from row 0 is expected");
    for (int i = 0; i < 14; i++)
        emulated_check(config.reserved[i] == 0, "reserved bytes are zero");
    for (int i = EMULATED_TILES; i < 16; i++)
        emulated_check(config.rows[i] == 0 && config.row_bytes[i] == 0, "there are eight tiles");
    emulated_tile_release();
    for (int i = 0; i < EMULATED_TILES; i++) {
        emulated_check(config.rows[i] <= EMULATED_ROWS && config.row_bytes[i] <= EMULATED_ROW_BYTES,
                       "a tile has at most 16 rows of 64 bytes");
        emulated_check((config.rows[i] == 0) == (config.row_bytes[i] == 0),
                       "a tile has both rows and columns, or neither");
        emulated_tiles[i].rows = config.rows[i];
        emulated_tiles[i].row_bytes = config.row_bytes[i];
    }
}

static inline void emulated_tile_zero(unsigned tile) {
    struct emulated_tile *t = emulated_tile(tile);
    memset(t->data, 0, sizeof t->data);
}

static inline void emulated_tile_loadd(unsigned tile, const void *base, size_t stride) {
    struct emulated_tile *t = emulated_tile(tile);
    emulated_tile_zero(tile);
    for (size_t row = 0; row < t->rows; row++)
        memcpy(t->data[row], (const char *)base + row * stride, t->row_bytes);
}

static inline void emulated_tile_stored(unsigned tile, void *base, size_t stride) {
    const struct emulated_tile *t = emulated_tile(tile);
    for (size_t row = 0; row < t->rows; row++)
        memcpy((char *)base + row * stride, t->data[row], t->row_bytes);
}

static inline void emulated_check_product(unsigned c, unsigned a, unsigned b) {
    const struct emulated_tile *tc = emulated_tile(c), *ta = emulated_tile(a),
                               *tb = emulated_tile(b);
    emulated_check(c != a && c != b && a != b, "the three tiles differ");
    emulated_check(tc->rows == ta->rows && tc->row_bytes == tb->row_bytes &&
                       ta->row_bytes == 4 * tb->rows && tb->row_bytes % 4 == 0,
                   "the shapes of the three tiles agree");
}

// c[i][j] += sum over k and four bytes of a[i][4 k + byte] * b[k][4 j + byte], modulo 2^32.
static inline void emulated_tile_dpbssd(unsigned c, unsigned a, unsigned b) {
    emulated_check_product(c, a, b);
    struct emulated_tile *tc = emulated_tile(c);
    const struct emulated_tile *ta = emulated_tile(a), *tb = emulated_tile(b);
    for (unsigned i = 0; i < tc->rows; i++) {
        uint32_t sums[EMULATED_ROW_BYTES / 4];
        memcpy(sums, tc->data[i], sizeof sums);
        for (unsigned k = 0; k < tb->rows; k++)
            for (unsigned j = 0; j < tc->row_bytes / 4; j++)
                for (unsigned byte = 0; byte < 4; byte++)
                    sums[j] += (uint32_t)(ta->data[i][4 * k + byte] * tb->data[k][4 * j + byte]);
        memcpy(tc->data[i], sums, sizeof sums);
    }
}

static inline float emulated_bf16(const void *element) {
    uint16_t half;
    uint32_t bits;
    float value;
    memcpy(&half, element, sizeof half);
    bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// c[i][j] += sum over k of a[i][2 k] * b[k][2 j] + sum over k of a[i][2 k + 1] * b[k][2 j + 1], a
// and b bf16, sums fp32. Subnormal numbers are kept, which the processor takes for zeros.
static inline void emulated_tile_dpbf16ps(unsigned c, unsigned a, unsigned b) {
    emulated_check_product(c, a, b);
    struct emulated_tile *tc = emulated_tile(c);
    const struct emulated_tile *ta = emulated_tile(a), *tb = emulated_tile(b);
    for (unsigned i = 0; i < tc->rows; i++)
        for (unsigned j = 0; j < tc->row_bytes / 4; j++) {
            float sum, even = 0, odd = 0;
            for (unsigned k = 0; k < tb->rows; k++) {
                const int8_t *x = &ta->data[i][4 * k], *y = &tb->data[k][4 * j];
                even += emulated_bf16(x) * emulated_bf16(y);
                odd += emulated_bf16(x + 2) * emulated_bf16(y + 2);
            }
            memcpy(&sum, &tc->data[i][4 * j], sizeof sum);
            sum += even + odd;
            memcpy(&tc->data[i][4 * j], &sum, sizeof sum);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated_tile_loadconfig
#define _tile_release emulated_tile_release
#define _tile_zero emulated_tile_zero
#define _tile_loadd emulated_tile_loadd
#define _tile_stored emulated_tile_stored
#define _tile_dpbssd emulated_tile_dpbssd
#define _tile_dpbf16ps emulated_tile_dpbf16ps

#endif
