// SPDX-License-Identifier: MIT
// The lut4 product of bf16 numbers with AMX, and AVX-512 BF16 to decode the weight. ukernels.h says
// what it computes.
//
// Rows of the decoded weight are the left operand of tdpbf16ps and a block of x is the right one, so a
// tile of sums has rows of the weight down and rows of x across: it is transposed on its way to acc.
// Thirty-two rows are decoded 128 columns at a time, into a buffer in the first-level cache from which
// tiles are loaded; while one of two buffers is multiplied, the other one is filled.

#include "ukernels.h"
#include "../common/amx.h"
#include "../common/avx512.h"

#include <stdbool.h>

// Thirty-two words of packed codes hold 128 elements of a row, four in each word, the codes of two or
// fewer blocks, as in avx512bf16.c: the scaled and rounded values of both blocks make one table of 32,
// in which bit 4 of an index picks the block. Of an index vpermw reads no more than the low five bits.
enum {
    UNIT = 128,
    STEPS = 4, // of tdpbf16ps in a unit: one for each code of a word
    ROWS = LOWBIT_AMX_ROWS,
    STRIDE = LOWBIT_AMX_ROW_BYTES,
    HEIGHT = 2 * ROWS, // rows of the weight
};

struct weight {
    const uint8_t *packed[HEIGHT];
    const float *s[HEIGHT];
    size_t k;
    int shift; // log2(blocksize)
};

typedef uint8_t unit_tiles[STEPS][HEIGHT][STRIDE];

// Rows `first` to `end` of the unit that begins at column k. What lies beyond the weight's last column,
// if it is half a unit, is +0 or -0.
LOWBIT_INLINE void decode(const struct weight *weight, __m512 codebook, size_t first, size_t end,
                          size_t k, unit_tiles tiles) {
    const __m512i nibbles = _mm512_set1_epi8(15);
    const __m512i block = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi8(16), 1);
    const bool whole = weight->k - k >= UNIT;
    const __mmask64 in = lowbit_first64((weight->k - k) / 2);
    const __mmask16 second_in = whole ? 0xffff : 0;
    const size_t first_block = k >> weight->shift;
    const size_t second_block = whole ? (k + UNIT / 2) >> weight->shift : first_block;
    for (size_t row = first; row < end; row++) {
        const float *s = weight->s[row];
        const __m512 a = _mm512_mul_ps(codebook, _mm512_set1_ps(s[first_block]));
        const __m512 b = _mm512_maskz_mul_ps(second_in, codebook, _mm512_set1_ps(s[second_block]));
        const __m512i table = (__m512i)_mm512_cvtne2ps_pbh(b, a);
        const __m512i codes = _mm512_maskz_loadu_epi8(in, weight->packed[row] + k / 2);
        // (codes & nibbles) | block
        const __m512i high =
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(codes, 4), nibbles, block, 0xea);
        const __m512i low = _mm512_ternarylogic_epi32(codes, nibbles, block, 0xea);
        _mm512_store_si512(tiles[0][row], _mm512_permutexvar_epi16(high, table));
        _mm512_store_si512(tiles[1][row], _mm512_permutexvar_epi16(low, table));
        _mm512_store_si512(tiles[2][row],
                           _mm512_permutexvar_epi16(_mm512_srli_epi16(high, 8), table));
        _mm512_store_si512(tiles[3][row],
                           _mm512_permutexvar_epi16(_mm512_srli_epi16(low, 8), table));
    }
}

// gcc's _tile_loadd does not say that it reads memory: without this, what is stored before may come
// after it, and what is stored after, before.
LOWBIT_INLINE void order_tile_loads(void) {
    __asm__ volatile("" ::: "memory");
}

// The first m rows and n columns of a transposed tile of sums.
LOWBIT_INLINE void store_transposed(const float *sums, size_t m, size_t n, float *acc,
                                    size_t acc_stride) {
    __m512i r[ROWS];
    for (size_t i = 0; i < ROWS; i++)
        r[i] = _mm512_load_si512(sums + i * ROWS);
    lowbit_transpose16(r);
    for (size_t i = 0; i < ROWS; i++)
        if (i < m)
            _mm512_mask_storeu_ps(acc + i * acc_stride, lowbit_first16(n),
                                  _mm512_castsi512_ps(r[i]));
}

void lowbit_lut4_gemm_ukernel_bf16_32x32__amx(const struct lowbit_lut4_gemm_args *a) {
    _Alignas(64) unit_tiles tiles[2];
    _Alignas(64) float sums[2][2][ROWS * ROWS]; // [block of x][block of the weight]
    const __m512 codebook = _mm512_loadu_ps(a->codebook);
    const bool two = a->m > ROWS; // blocks of x; a second one need not exist
    const size_t units = (a->k + UNIT - 1) / UNIT;
    struct weight weight = {.k = a->k, .shift = __builtin_ctzll(a->blocksize)};
    for (size_t i = 0; i < HEIGHT; i++) {
        const size_t row = i < a->n ? i : a->n - 1; // past the last row, once more
        weight.packed[i] = a->packed + row * (a->k / 2);
        weight.s[i] = a->s + row * a->s_stride;
    }
    const char *x = a->x, *second = x + (two ? a->x_stride : 0);
    size_t touched = 0, touch = 0;
    _tile_loadconfig(&lowbit_eight_tiles);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (units > 0)
        decode(&weight, codebook, 0, HEIGHT, 0, tiles[0]);
    for (size_t unit = 0; unit < units; unit++) {
        uint8_t (*now)[HEIGHT][STRIDE] = tiles[unit % 2],
                (*next)[HEIGHT][STRIDE] = tiles[~unit % 2];
        order_tile_loads();
        for (size_t step = 0; step < STEPS; step++) {
            const size_t at = (unit * STEPS + step) * ROWS * STRIDE;
            _tile_loadd(4, now[step][0], STRIDE);
            _tile_loadd(5, now[step][ROWS], STRIDE);
            _tile_loadd(6, x + at, STRIDE);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            if (two) {
                _tile_loadd(7, second + at, STRIDE);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
            for (touch += a->prefetch_size; touched * units * STEPS < touch; touched += 64)
                _mm_prefetch((const char *)a->prefetch + touched, _MM_HINT_T1);
            if (unit + 1 < units)
                decode(&weight, codebook, step * (HEIGHT / STEPS), (step + 1) * (HEIGHT / STEPS),
                       (unit + 1) * UNIT, next);
        }
    }
    _tile_stored(0, sums[0][0], STRIDE);
    _tile_stored(1, sums[0][1], STRIDE);
    _tile_stored(2, sums[1][0], STRIDE);
    _tile_stored(3, sums[1][1], STRIDE);
    _tile_release();
    for (size_t i = 0; i < a->m; i += ROWS)
        for (size_t j = 0; j < a->n; j += ROWS)
            store_transposed(sums[i / ROWS][j / ROWS], a->m - i, a->n - j,
                             a->acc + i * a->acc_stride + j, a->acc_stride);
}
