// SPDX-License-Identifier: MIT
// The launchers of the int8 family. They trust their caller as micro-kernels do: sizes and
// pointers, all on the stream's device, are valid. They never wait, and return what the launch
// returned.
#ifndef LOWBIT_KERNELS_CUDA_INT8_LAUNCH_H
#define LOWBIT_KERNELS_CUDA_INT8_LAUNCH_H

#include "../../cpu/common/floats.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LOWBIT_CUDA_CHUNK = 1024,    // elements of a row whose outliers are summed on their own
    LOWBIT_CUDA_LISTED = 64,     // outliers of a row that are found without a search
    LOWBIT_CUDA_ROW_ALIGN = 128, // quantized rows are padded with zeros to a multiple of this
    // Bytes that the panel of outlier columns may have.
    LOWBIT_CUDA_PANEL_BYTES = 64 << 20,
    // Up to so many rows and elements of a row no panel is needed: the product has its own.
    LOWBIT_CUDA_LOCAL_M = 128,
    LOWBIT_CUDA_LOCAL_K = 32768,
};

typedef struct lowbit_cuda_int8_outlier {
    uint32_t k;
    float x;
} lowbit_cuda_int8_outlier;

// What a row of x is besides its codes.
typedef struct lowbit_cuda_int8_of_row {
    float r;
    int32_t sum; // of q
    uint32_t outliers;
} lowbit_cuda_int8_of_row;

// Rows of x, quantized, in device memory. Outliers are marked by bits: bit k % 32 of word k / 32 of
// a row's mask.
typedef struct lowbit_cuda_int8_rows {
    int8_t *q;                       // [m][stride], zeros beyond k
    size_t stride;                   // k rounded up to LOWBIT_CUDA_ROW_ALIGN
    lowbit_cuda_int8_of_row *of_row; // [m]
    uint32_t *mask;                  // [m][stride / 32]
    lowbit_cuda_int8_outlier *list;  // [m][LOWBIT_CUDA_LISTED] the first outliers, in ascending k
} lowbit_cuda_int8_rows;

// 32 columns of the weight.
typedef struct lowbit_cuda_int8_columns {
    uint32_t marked; // those that hold outliers of any row
    uint32_t before; // how many are marked in the words before; only where marked is not zero
} lowbit_cuda_int8_columns;

// The marked columns as rows. Columns beyond the capacity are not in the panel.
typedef struct lowbit_cuda_int8_panel {
    lowbit_cuda_int8_columns *columns; // [rows.stride / 32]; null: no panel
    int8_t *values;                    // [capacity][stride]
    size_t stride;                     // n rounded up to 4
    size_t capacity;
} lowbit_cuda_int8_panel;

typedef struct lowbit_cuda_int8_linear {
    size_t m, n, k;
    enum lowbit_float x_type, scale_type, bias_type, y_type;
    const void *x;        // [m][x_stride]
    size_t x_stride;      // elements
    const int8_t *weight; // [n][k]
    const void *absmax;   // [n]
    const void *offset;   // [n] or null
    const void *bias;     // [n] or null
    float threshold;      // +inf where there is none
    void *y;              // [m][y_stride]
    size_t y_stride;
    lowbit_cuda_int8_rows rows;   // scratch
    lowbit_cuda_int8_panel panel; // scratch of the gemm
    int32_t *sums;                // scratch of the gemm
} lowbit_cuda_int8_linear;

// At most 16 rows of x: one launch for 1 or 2 rows of at most LOWBIT_CUDA_FUSED elements, otherwise
// two.
enum { LOWBIT_CUDA_FUSED = 16384 };
int lowbit_int8_linear_decode_launch(const lowbit_cuda_int8_linear *args, void *stream);
// Any number of rows. sums has the size that the other function gives, or is null where that is 0.
size_t lowbit_int8_linear_gemm_sums(size_t m, size_t n, size_t k);
int lowbit_int8_linear_gemm_launch(const lowbit_cuda_int8_linear *args, void *stream);

int lowbit_int8_quantize_launch(const void *x, enum lowbit_float x_type, size_t m, size_t k,
                                size_t x_stride, float threshold, int8_t *q, size_t q_stride,
                                enum lowbit_float scale_type, void *absmax, void *stream);
int lowbit_int8_quantize_offset_launch(const void *weight, enum lowbit_float type, size_t n,
                                       size_t k, size_t stride, int8_t *q, size_t q_stride,
                                       enum lowbit_float scale_type, void *absmax, void *offset,
                                       void *stream);
int lowbit_int8_dequantize_launch(const int8_t *q, size_t m, size_t k, size_t q_stride,
                                  enum lowbit_float scale_type, const void *absmax,
                                  const void *offset, enum lowbit_float y_type, void *y,
                                  size_t y_stride, void *stream);

// c [m][n] = a [m][k] b [n][k]^T, modulo 2^32.
int lowbit_int8_matmul_launch(const int8_t *a, size_t a_stride, const int8_t *b, size_t m, size_t n,
                              size_t k, int32_t *c, size_t c_stride, void *stream);

#ifdef __cplusplus
}
#endif

#endif
