// SPDX-License-Identifier: MIT
// The micro-kernels of the int8 family: what each signature computes, and the table of all of them.
//
// A micro-kernel trusts its caller: sizes and pointers are valid, pointers do not overlap unless
// said, and the floating-point environment is the default one (round to nearest, no flush to zero).
// None reads outside the elements it is given. For one signature every instruction set produces the
// same bits; the scalar one is the specification. (Which NaN a panel or a sum holds is left open: every
// NaN is stored as the same one in the end.)
#ifndef LOWBIT_KERNELS_CPU_INT8_UKERNELS_H
#define LOWBIT_KERNELS_CPU_INT8_UKERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LOWBIT_INT8_TILE_N = 64,         // most rows of the weight in one tile
    LOWBIT_INT8_TILE_M = 32,         // most rows of x in one call of a gemm
    LOWBIT_INT8_FMA_ROWS = 4,        // rows of x that share one list of outlier columns
    LOWBIT_INT8_OUTLIER_BLOCK = 1024 // columns whose outlier products are summed on their own
};

// range: what one row of x holds, for a threshold t > 0 (+inf for none).
//
//   outlier: !(|x_k| < t)      lo = min, hi = max over the others, both +0 if there are none
//   outliers = how many        mask, unless null: bit k % 64 of word k / 64 is set at outliers,
//                              all ceil(k / 64) words written
struct lowbit_int8_range {
    float lo, hi;
    size_t outliers;
};
typedef void lowbit_int8_range_ukernel(size_t k, const void *x, float t, uint64_t *mask,
                                       struct lowbit_int8_range *range);

// codes: q_k = clamp(round_half_even((x_k - center) * inv), -127, 127), 0 at outliers. Returns the
// sum of q_k.
typedef int32_t lowbit_int8_codes_ukernel(size_t k, const void *x, float t, float center, float inv,
                                          int8_t *q);

// dequantize: y_k = fma(q_k, s, *offset), or q_k * s when offset is null.
typedef void lowbit_int8_dequantize_ukernel(size_t k, const int8_t *q, float s, const float *offset,
                                            void *y);

// pack: rewrites n <= LOWBIT_INT8_TILE_N rows of the weight for a gemm that asks for it. Panels of
// 16 rows follow each other; in a panel four k of one row stand together, then the next row, then
// the next four k: element (n, k) is at
//
//   ((n / 16) * ceil(k_size / 4) + k / 4) * 64 + (n % 16) * 4 + k % 4
//
// Missing rows and columns are filled so that they add nothing. What a byte holds is between pack
// and its gemm.
typedef void lowbit_int8_pack_ukernel(size_t n, size_t k, const int8_t *w, size_t w_stride,
                                      int8_t *panel);

// gemm: acc[m][n] = sum over k of x[m][k] * w[n][k], modulo 2^32.
//
// m <= the row's MR, n <= its NR. Rows of quantized x are padded with zeros to a multiple of 64 and
// come in the layout that the table names:
//   ROWS    row m starts at x + m * x_stride, 64-byte aligned
//   TILES   blocks of 16 rows, x_stride bytes apart, missing rows zero; in a block, element (m, k)
//           is at (k / 64) * 1024 + (k % 64) / 4 * 64 + m * 4 + k % 4
// xsum[m] is the sum of row m. w is the weight itself, rows w_stride bytes apart and k wide, or,
// when the table's row has a pack, the panel; w_stride is then 0.
// acc is 64-byte aligned; elements of acc beyond m or n, up to the tile, may be overwritten.
// prefetch..+prefetch_size is memory that the next call will read: worth touching, never needed.
struct lowbit_int8_gemm_args {
    size_t m, n, k;
    const int8_t *x;
    size_t x_stride;
    const int32_t *xsum;
    const int8_t *w;
    size_t w_stride;
    int32_t *acc;      // [TILE_M][acc_stride]
    size_t acc_stride; // in elements, a multiple of 16
    const int8_t *prefetch;
    size_t prefetch_size;
};
typedef void lowbit_int8_gemm_ukernel(const struct lowbit_int8_gemm_args *args);

// epilogue: from integer sums to y, for a tile of m rows and n columns.
//
//   main = r * (offset ? fma(s, (float)acc, offset * (float)xsum) : s * (float)acc)
//   y = (main + o) + bias        NaN becomes the positive quiet NaN, then rounded to y's type
//
// o null: o = +0. bias null: nothing is added.
struct lowbit_int8_epilogue_args {
    size_t m, n;
    const int32_t *acc; // [m][acc_stride]
    size_t acc_stride;
    const float *r;      // [m]
    const int32_t *xsum; // [m]
    const float *s;      // [n]
    const float *offset; // [n] or null
    const float *bias;   // [n] or null
    const float *o;      // [m][o_stride] or null
    size_t o_stride;
    void *y;         // row m starts at y + m * y_stride
    size_t y_stride; // in bytes
};
typedef void lowbit_int8_epilogue_ukernel(const struct lowbit_int8_epilogue_args *args);

// panel: dequantizes and transposes n rows and k columns of the weight:
//
//   panel[k * panel_stride + n] = offset ? fma(w[n][k], s[n], offset[n]) : w[n][k] * s[n]
typedef void lowbit_int8_panel_ukernel(size_t n, size_t k, const int8_t *w, size_t w_stride,
                                       const float *s, const float *offset, float *panel,
                                       size_t panel_stride);

// fma: adds products of rows of x with rows of a panel, block by block. For each block b, with j
// from begin[b] to begin[b + 1] in ascending order:
//
//   c = +0,  c = fma(x[j * 4 + m], panel[index[j] * panel_stride + n], c)      o[m][n] += c
//
// for m rows (at most 4; x always holds 4 values for each j) and n columns. When finite is false a
// value of +0 in x is skipped, not multiplied: the panel may hold infinities or NaN, and a zero
// stands for an element that is not in the list. Otherwise the caller promises a finite panel, and
// both readings give the same o.
struct lowbit_int8_fma_args {
    size_t m, n;
    size_t blocks;
    const uint32_t *begin; // [blocks + 1]
    const uint32_t *index; // [begin[blocks]]
    const float *x;        // [begin[blocks]][4]
    const float *panel;
    size_t panel_stride;
    float *o; // [m][o_stride]
    size_t o_stride;
    bool finite;
};
typedef void lowbit_int8_fma_ukernel(const struct lowbit_int8_fma_args *args);

// pairs and scale prepare the gradient for a processor that multiplies bf16 numbers (the dense
// family's gemm for bf16); there is none in plain C.
//
// pairs: columns of two rows of the weight side by side, as bf16, which holds any int8 exactly:
// panel[k] has row 0 in its lower and row 1 in its upper half. second null: a row of zeros.
typedef void lowbit_int8_pairs_ukernel(size_t k, const int8_t *first, const int8_t *second,
                                       uint32_t *panel);

// scale: y_n = bf16(x_n * s_n), x and y bf16. Returns the sum of x_n * offset_n in fp32, 0 when
// offset is null.
typedef float lowbit_int8_scale_ukernel(size_t n, const uint16_t *x, const float *s,
                                        const float *offset, uint16_t *y);

enum lowbit_int8_x_layout { LOWBIT_INT8_ROWS, LOWBIT_INT8_TILES };

// The tables. A row names its kernel's function by the grammar
//   lowbit_int8_<signature>_ukernel[_<type>][_<MR>x<NR>]__<isa>
// and ops, tests and benchmarks read the same rows.
#define LOWBIT_DECLARE(signature, type, isa)                                                       \
    lowbit_int8_##signature##_ukernel lowbit_int8_##signature##_ukernel_##type##__##isa;
#define LOWBIT_RANGE(type, isa, ISA) LOWBIT_DECLARE(range, type, isa)
#define LOWBIT_CODES(type, isa, ISA) LOWBIT_DECLARE(codes, type, isa)
#define LOWBIT_DEQUANTIZE(type, isa, ISA) LOWBIT_DECLARE(dequantize, type, isa)
#define LOWBIT_EPILOGUE(type, isa, ISA) LOWBIT_DECLARE(epilogue, type, isa)
#define LOWBIT_PANEL(type, isa, ISA) LOWBIT_DECLARE(panel, type, isa)
#define LOWBIT_FMA(type, isa, ISA) LOWBIT_DECLARE(fma, type, isa)
#define LOWBIT_PAIRS(type, isa, ISA) LOWBIT_DECLARE(pairs, type, isa)
#define LOWBIT_SCALE(type, isa, ISA) LOWBIT_DECLARE(scale, type, isa)
#include "elementwise.inc"
#define LOWBIT_PACK(isa) lowbit_int8_pack_ukernel lowbit_int8_pack_ukernel__##isa;
#define LOWBIT_GEMM(mr, nr, isa, ISA, m_min, m_max, x_layout, pack, full_range)                    \
    lowbit_int8_gemm_ukernel lowbit_int8_gemm_ukernel_##mr##x##nr##__##isa;
#include "gemm.inc"

#ifdef __cplusplus
}
#endif

#endif
