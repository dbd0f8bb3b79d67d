// SPDX-License-Identifier: MIT
// How kernels for AMX set up their tiles.
#ifndef LOWBIT_KERNELS_CPU_COMMON_AMX_H
#define LOWBIT_KERNELS_CPU_COMMON_AMX_H

#include <immintrin.h>
#include <stdint.h>

enum {
    LOWBIT_AMX_ROWS = 16,      // of a tile
    LOWBIT_AMX_ROW_BYTES = 64, // of a row
};

// Eight tiles of that size. Constant data, because gcc's _tile_loadconfig declares that it reads 8
// bytes of these 64: it may drop stores to the others.
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} lowbit_eight_tiles = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

#endif
