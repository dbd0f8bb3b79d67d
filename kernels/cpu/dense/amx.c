// SPDX-License-Identifier: MIT
// The product of bf16 numbers with AMX, and tiles for it and others. ukernels.h says what each does.

#include "ukernels.h"
#include "../common/amx.h"
#include "../common/avx512.h"

#include <stdbool.h>

enum { ROWS = LOWBIT_AMX_ROWS, ROW_BYTES = LOWBIT_AMX_ROW_BYTES };

// 2 x 2 tiles, loaded from start and stored to sum.
void lowbit_dense_gemm_ukernel_bf16_32x32__amx(const struct lowbit_dense_gemm_args *a) {
    const bool two = a->m > ROWS;
    const size_t x_bytes = a->x_stride * sizeof(uint16_t), row_bytes = a->stride * sizeof(float);
    const size_t start_bytes = a->start_stride * sizeof(float);
    _tile_loadconfig(&lowbit_eight_tiles);
    for (size_t c = 0; c < a->c; c += 2 * ROWS) {
        const float *start = a->start + c, *start_below = start + ROWS * a->start_stride;
        _tile_loadd(0, start, start_bytes);
        _tile_loadd(1, start + ROWS, start_bytes);
        if (two) {
            _tile_loadd(2, start_below, start_bytes);
            _tile_loadd(3, start_below + ROWS, start_bytes);
        }
        for (size_t r = 0; r < a->r; r += 2 * ROWS) {
            const uint16_t *x = (const uint16_t *)a->x + r;
            const uint32_t *panel = (const uint32_t *)a->panel + r / 2 * a->stride + c;
            _tile_loadd(4, x, x_bytes);
            _tile_loadd(6, panel, row_bytes);
            _tile_loadd(7, panel + ROWS, row_bytes);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if (two) {
                _tile_loadd(5, x + ROWS * a->x_stride, x_bytes);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        float *sum = a->sum + c, *below = sum + ROWS * a->stride;
        _tile_stored(0, sum, row_bytes);
        _tile_stored(1, sum + ROWS, row_bytes);
        if (two) {
            _tile_stored(2, below, row_bytes);
            _tile_stored(3, below + ROWS, row_bytes);
        }
    }
    _tile_release();
}

void lowbit_dense_tiles__amx(size_t m, size_t bytes, const void *x, size_t x_stride, void *tiles) {
    const char *from = x;
    char *to = tiles;
    for (size_t k = 0; k < bytes; k += ROW_BYTES) {
        __m512i r[ROWS];
        for (size_t i = 0; i < ROWS; i++)
            r[i] = i < m ? _mm512_load_si512(from + i * x_stride + k) : _mm512_setzero_si512();
        lowbit_transpose16(r);
        for (size_t i = 0; i < ROWS; i++)
            _mm512_store_si512(to + k * ROWS + i * ROW_BYTES, r[i]);
    }
}
