// SPDX-License-Identifier: MIT
// The matrix products for AMX, with AVX-512 F and BW around them. ukernels.h says what each
// computes.
//
// Sixteen rows of the weight, in place, are the left operand of tdpbssd and a block of x is the
// right one. So the weight is never packed, and a tile of sums has rows of the weight down and rows
// of x across: it is transposed on its way to acc.

#include "ukernels.h"
#include "../common/amx.h"
#include "../common/avx512.h"

enum {
    ROWS = LOWBIT_AMX_ROWS,
    STEP = LOWBIT_AMX_ROW_BYTES, // columns of the weight that one tdpbssd takes
    BLOCK_BYTES = ROWS * STEP,   // of the weight, or of x
    SUMS = ROWS * ROWS,
};

// 16 rows of the weight from row n on, 64 columns from column k on, and how far apart its rows are:
// in place, or, at the edges of the weight, a copy that is zero where the weight has ended.
LOWBIT_INLINE const int8_t *weight_block(const struct lowbit_int8_gemm_args *a, size_t n, size_t k,
                                         int8_t *copy, size_t *stride) {
    const int8_t *w = a->w + n * a->w_stride + k;
    if (n + ROWS <= a->n && k + STEP <= a->k) {
        *stride = a->w_stride;
        return w;
    }
    const __mmask64 in = lowbit_first64(a->k - k);
    for (size_t i = 0; i < ROWS; i++)
        _mm512_store_si512(copy + i * STEP, n + i < a->n
                                                ? _mm512_maskz_loadu_epi8(in, w + i * a->w_stride)
                                                : _mm512_setzero_si512());
    // gcc's _tile_loadd does not say that it reads memory: without this the stores may come late.
    __asm__ volatile("" ::: "memory");
    *stride = STEP;
    return copy;
}

// A macro because a tile's number has to be a literal.
#define LOAD_WEIGHT(tile, n, k)                                                                    \
    do {                                                                                           \
        size_t stride;                                                                             \
        const int8_t *block = weight_block(a, n, k, copy, &stride);                                \
        _tile_loadd(tile, block, stride);                                                          \
    } while (0)

// One tile of sums to 16 rows and 16 columns of acc.
LOWBIT_INLINE void store_transposed(const int32_t *sums, int32_t *acc, size_t acc_stride) {
    __m512i r[ROWS];
    for (size_t i = 0; i < ROWS; i++)
        r[i] = _mm512_load_si512(sums + i * ROWS);
    lowbit_transpose16(r);
    for (size_t i = 0; i < ROWS; i++)
        _mm512_store_si512(acc + i * acc_stride, r[i]);
}

// Up to 16 rows of x: 64 rows of the weight stream past one block of x. args->prefetch is left
// alone: the machine's own prefetchers keep up with four streams, and more requests slow them down
// (measured on Sapphire Rapids, 4096 x 4096 from DRAM: 0.1 ms in 0.6).
void lowbit_int8_gemm_ukernel_16x64__amx(const struct lowbit_int8_gemm_args *a) {
    _Alignas(64) int8_t copy[BLOCK_BYTES];
    _Alignas(64) int32_t sums[4][SUMS];
    _tile_loadconfig(&lowbit_eight_tiles);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t k = 0; k < a->k; k += STEP) {
        _tile_loadd(4, a->x + k * ROWS, STEP);
        LOAD_WEIGHT(5, 0, k);
        _tile_dpbssd(0, 5, 4);
        LOAD_WEIGHT(6, 16, k);
        _tile_dpbssd(1, 6, 4);
        LOAD_WEIGHT(7, 32, k);
        _tile_dpbssd(2, 7, 4);
        LOAD_WEIGHT(5, 48, k);
        _tile_dpbssd(3, 5, 4);
    }
    _tile_stored(0, sums[0], STEP);
    _tile_stored(1, sums[1], STEP);
    _tile_stored(2, sums[2], STEP);
    _tile_stored(3, sums[3], STEP);
    _tile_release();
    for (size_t i = 0; i < 4; i++)
        store_transposed(sums[i], a->acc + i * ROWS, a->acc_stride);
}

// More rows of x: 2 x 2 tiles, so that each tile loaded is used twice.
void lowbit_int8_gemm_ukernel_32x32__amx(const struct lowbit_int8_gemm_args *a) {
    _Alignas(64) int8_t copy[BLOCK_BYTES];
    _Alignas(64) int32_t sums[2][2][SUMS]; // [block of x][block of the weight]
    const bool two = a->m > ROWS;          // blocks of x; a second one need not exist
    const size_t steps = (a->k + STEP - 1) / STEP;
    size_t touched = 0, touch = 0;
    _tile_loadconfig(&lowbit_eight_tiles);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t step = 0; step < steps; step++) {
        const size_t k = step * STEP;
        LOAD_WEIGHT(4, 0, k);
        _tile_loadd(6, a->x + k * ROWS, STEP);
        if (two)
            _tile_loadd(7, a->x + a->x_stride + k * ROWS, STEP);
        LOAD_WEIGHT(5, 16, k);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 5, 6);
        if (two) {
            _tile_dpbssd(2, 4, 7);
            _tile_dpbssd(3, 5, 7);
        }
        for (touch += a->prefetch_size; touched * steps < touch; touched += 64)
            _mm_prefetch((const char *)a->prefetch + touched, _MM_HINT_T1);
    }
    _tile_stored(0, sums[0][0], STEP);
    _tile_stored(1, sums[0][1], STEP);
    _tile_stored(2, sums[1][0], STEP);
    _tile_stored(3, sums[1][1], STEP);
    _tile_release();
    for (size_t i = 0; i < (two ? 2 : 1); i++)
        for (size_t j = 0; j < 2; j++)
            store_transposed(sums[i][j], a->acc + i * ROWS * a->acc_stride + j * ROWS,
                             a->acc_stride);
}
