// SPDX-License-Identifier: MIT

#include "lut4_cuda.h"

#include "arena.h"
#include "cuda.h"
#include "floats.h"

#include "../kernels/cuda/lut4/launch.h"

enum {
    BLOCK_M = 1024,   // rows of x at a time: scratch does not grow with all of them
    DECODE_ROWS = 16, // the most that the kernel for few rows takes
    PIECE = 64,       // columns of x that kernels take at a time
    TILE_M = 64,      // rows and columns of y in a tile of the other kernel
    TILE_N = 128,
    // Blocks of threads that keep a GPU busy, and the most parts of k. A number of the GPU at hand
    // would make results differ from one to the next.
    BLOCKS = 264,
    MOST_SPLITS = 8,
};

static unsigned log2_of(size_t power) {
    unsigned log2 = 0;
    while (power >> log2 > 1)
        log2++;
    return log2;
}

static lowbit_cuda_lut4_weight weight_of(const lowbit_lut4_weight *w, size_t elements) {
    return (lowbit_cuda_lut4_weight){
        .packed = w->packed->data,
        .codebook = w->codebook->data,
        .elements = elements,
        .log2_blocksize = log2_of(w->blocksize),
        .absmax = w->absmax->data,
        .nested_absmax = w->nested_absmax ? w->nested_absmax->data : NULL,
        .nested_codebook = w->nested_codebook ? w->nested_codebook->data : NULL,
        .nested_offset = w->nested_offset ? w->nested_offset->data : NULL,
    };
}

static bool fits(const lowbit_lut4_weight *weight, size_t k) {
    return k % PIECE == 0 && weight->blocksize >= PIECE && k % weight->blocksize == 0 &&
           (uintptr_t)weight->packed->data % 16 == 0;
}

// Rows that are worth decoding the weight for in every tile, against 4.5 bytes of traffic per
// weight to decode it once and a product with all of a GPU's speed. A float16 weight in two parts
// doubles the work of a tile; with float32 x, three products of halves are faster than one of
// floats.
static size_t most_rows(lowbit_dtype x) {
    return x == LOWBIT_BFLOAT16 ? 256 : x == LOWBIT_FLOAT16 ? 128 : SIZE_MAX;
}

static int splits_of(size_t m, size_t n, size_t k) {
    const size_t tiles = ((m + TILE_M - 1) / TILE_M) * ((n + TILE_N - 1) / TILE_N);
    size_t splits = tiles ? BLOCKS / tiles : 1;
    splits = splits < MOST_SPLITS ? splits : MOST_SPLITS;
    splits = splits < k / PIECE ? splits : k / PIECE;
    return splits ? (int)splits : 1;
}

// The scratch of a block of rows; returns its size.
static size_t plan(lowbit_cuda_lut4_linear *c, size_t m, size_t n, size_t k, void *workspace) {
    lowbit_arena arena = {workspace, 0};
    m = m < BLOCK_M ? m : BLOCK_M;
    c->rows.halves = lowbit_take(&arena, 2 * m * k * sizeof *c->rows.halves);
    c->rows.scale = lowbit_take(&arena, m * sizeof *c->rows.scale);
    c->splits = splits_of(m, n, k);
    c->partial = NULL;
    if (m > DECODE_ROWS && c->splits > 1)
        c->partial = lowbit_take(&arena, (size_t)c->splits * m * n * sizeof *c->partial);
    return arena.used;
}

size_t lowbit_lut4_linear_cuda_workspace_size(size_t m, size_t n, size_t k) {
    lowbit_cuda_lut4_linear c;
    return plan(&c, m, n, k, NULL);
}

lowbit_status lowbit_lut4_linear_cuda(const char *op, const lowbit_lut4_linear_args *args,
                                      void *stream, void *workspace, size_t workspace_size) {
    const lowbit_tensor *x = args->x, *y = args->y;
    const size_t rows = x->rows, n = y->cols, k = x->cols;
    if (rows > most_rows(x->dtype) || !fits(&args->weight, k))
        return lowbit_fail(
            LOWBIT_UNSUPPORTED,
            "%s: on a GPU, x has %zu rows, k is %zu, blocksize %zu and packed at %p; expected at "
            "most "
            "256 rows in bfloat16 and 128 in float16, k a multiple of blocksize, that at least 64, "
            "and packed aligned to 16 bytes",
            op, rows, k, args->weight.blocksize, args->weight.packed->data);
    LOWBIT_TRY(lowbit_check_workspace(op, workspace, workspace_size,
                                      lowbit_lut4_linear_cuda_workspace_size(rows, n, k)));
    lowbit_cuda_lut4_linear c = {
        .n = n,
        .k = k,
        .x_type = lowbit_float_type(x),
        .x_stride = x->stride,
        .weight = weight_of(&args->weight, n * k),
        .bias_type = args->bias ? lowbit_float_type(args->bias) : f32,
        .bias = args->bias ? args->bias->data : NULL,
        .y_type = lowbit_float_type(y),
        .y_stride = y->stride,
    };
    plan(&c, rows, n, k, workspace);
    if (!n)
        return LOWBIT_OK;
    for (size_t m = 0; m < rows; m += c.m) {
        c.m = rows - m < BLOCK_M ? rows - m : BLOCK_M;
        c.x = lowbit_float_row(x, m);
        c.y = lowbit_float_row(y, m);
        LOWBIT_TRY(lowbit_cuda_status(op, rows <= DECODE_ROWS
                                              ? lowbit_lut4_linear_decode_launch(&c, stream)
                                              : lowbit_lut4_linear_tiles_launch(&c, stream)));
    }
    return LOWBIT_OK;
}

lowbit_status lowbit_lut4_dequantize_cuda(const char *op, const lowbit_lut4_weight *weight,
                                          const lowbit_tensor *out, void *stream) {
    const lowbit_cuda_lut4_weight w = weight_of(weight, out->rows * out->cols);
    if (!w.elements)
        return LOWBIT_OK;
    return lowbit_cuda_status(
        op, lowbit_lut4_dequantize_launch(&w, lowbit_float_type(out), out->data, stream));
}

lowbit_status lowbit_lut4_quantize_cuda(const char *op, const lowbit_tensor *weight,
                                        const lowbit_tensor *codebook, size_t blocksize,
                                        const lowbit_tensor *packed, const lowbit_tensor *absmax,
                                        void *stream) {
    const size_t elements = weight->rows * weight->cols;
    if (!elements)
        return LOWBIT_OK;
    return lowbit_cuda_status(
        op, lowbit_lut4_quantize_launch(weight->data, lowbit_float_type(weight), codebook->data,
                                        elements, log2_of(blocksize), packed->data, absmax->data,
                                        stream));
}
