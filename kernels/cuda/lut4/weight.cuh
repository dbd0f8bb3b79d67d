// SPDX-License-Identifier: MIT
// Scales and values of a 4-bit weight, and rows of x in fp16.
#ifndef LOWBIT_KERNELS_CUDA_LUT4_WEIGHT_CUH
#define LOWBIT_KERNELS_CUDA_LUT4_WEIGHT_CUH

#include "launch.h"
#include <block.cuh>
#include <floats.cuh>
#include <ptx.cuh>

namespace {

constexpr int LUT4_THREADS = 256, LUT4_WARPS = LUT4_THREADS / 32;
constexpr int PREPARE_THREADS = 1024; // at most

// A block's scale in two steps: what has to be loaded, so that loads can be under way early, and
// the number that follows.
struct ScaleParts {
    float first;   // the scale, or nested_absmax
    uint32_t code; // of nested_codebook
};

__device__ __forceinline__ ScaleParts load_scale(const lowbit_cuda_lut4_weight &w, size_t block) {
    if (!w.nested_absmax)
        return {static_cast<const float *>(w.absmax)[block], 0};
    return {w.nested_absmax[block / 256], static_cast<const uint8_t *>(w.absmax)[block]};
}

__device__ __forceinline__ float scale_of(const lowbit_cuda_lut4_weight &w, ScaleParts parts,
                                          const float *nested_codebook, float offset) {
    if (!w.nested_absmax)
        return parts.first;
    return __fadd_rn(__fmul_rn(nested_codebook[parts.code], parts.first), offset);
}

// The power of two up to the magnitude of a number, or the least normal one.
__device__ __forceinline__ float power_up_to(float magnitude) {
    return __uint_as_float(max(__float_as_uint(magnitude) & 0x7f800000u, 0x00800000u));
}

// Products use the codebook divided by this: its largest value is then in [1, 2), or it is all
// zeros.
__device__ __forceinline__ float codebook_unit(const float *codebook) {
    float most = 0.0f;
    for (int i = 0; i < 16; i++)
        most = fmaxf(most, fabsf(codebook[i]));
    return power_up_to(most);
}

// The values of a byte's two codes over the codebook's unit as fp16, the first in the low half, and
// with PARTS == 2 what they lack to the fp32 values. Copies lie side by side, so that the lanes of
// a warp that read at once find 32 different banks.
template <int PARTS> struct Table {
    struct alignas(4 * PARTS) Entry { // read and written as one
        uint32_t part[PARTS];
    };
    static constexpr int COPIES = 32 / PARTS;
    Entry entry[256][COPIES];

    // By a whole block of threads; a barrier has to follow. Returns the unit.
    __device__ __forceinline__ float fill(const float *codebook, int threads) {
        const float unit = codebook_unit(codebook), inverse = __fdiv_rn(1.0f, unit);
        for (int byte = threadIdx.x; byte < 256; byte += threads) {
            const float values[2] = {codebook[byte >> 4], codebook[byte & 15]};
            Entry e = {};
            for (int i = 0; i < 2; i++) {
                float rest = __fmul_rn(values[i], inverse);
                for (int p = 0; p < PARTS; p++) {
                    const __half part = __float2half_rn(rest);
                    e.part[p] |= static_cast<uint32_t>(__half_as_ushort(part)) << (16 * i);
                    rest = __fsub_rn(rest, __half2float(part));
                }
            }
            for (int i = 0; i < COPIES; i++) // beginning at different banks
                entry[byte][(i + byte) % COPIES] = e;
        }
        return unit;
    }
    // Byte i of four.
    __device__ __forceinline__ Entry look_up(uint32_t bytes, int i, int lane) const {
        const uint32_t row = i ? bytes >> (8 * i - 7) : bytes << 7; // times its size
        const uint32_t at = (row & 0x7f80) | lane % COPIES * sizeof(Entry);
        return *reinterpret_cast<const Entry *>(reinterpret_cast<const unsigned char *>(entry) +
                                                at);
    }
};

// Returns the offset of the scales; their codebook goes to shared memory. A barrier has to follow.
__device__ __forceinline__ float load_nested(const lowbit_cuda_lut4_weight &w,
                                             float (&codebook)[256], int threads) {
    if (!w.nested_absmax)
        return 0.0f;
    for (int i = threadIdx.x; i < 256; i += threads)
        codebook[i] = w.nested_codebook[i];
    return w.nested_offset[0];
}

// Of 64 columns of a row of x a thread takes 16 neighbours, with t from 16 t on, in two pieces of
// eight. This is where a piece stands among the 64: lanes that read those of two rows at once find
// 32 different banks.
__device__ __forceinline__ size_t place_of(size_t row, int t, int piece) {
    return ((piece ^ (row & 1)) * 4 + t) * 8;
}

// How many fp16 numbers stand for one of x, and for one of the codebook. A float16 weight that
// torch rounded has errors as large as those of an fp16 codebook: to stay beneath them, a codebook
// for float16 x keeps more bits.
template <lowbit_float x> constexpr int x_parts = x == f32 ? 2 : 1;
template <lowbit_float x> constexpr int c_parts = x == bf16 ? 1 : 2;

// A block of threads prepares row m, eight columns in a thread at a time. It reads them twice: the
// second time from L1. halves: where the row goes, its second parts `part` behind. Returns what it
// is divided by. Contains a barrier, and other barriers have to stand between two calls.
template <lowbit_float type>
__device__ __forceinline__ float prepare_row(const lb_bits<type> *row, size_t m, size_t k,
                                             uint16_t *halves, size_t part, int32_t *of_warp) {
    const bool aligned = lb_aligned(row, 16);
    float most = 0.0f;
    for (size_t i = 8 * threadIdx.x; i < k; i += 8 * blockDim.x) {
        float values[8];
        lb_load8<type>(values, row, i, k, aligned);
        for (float value : values)
            if (fabsf(value) < INFINITY)
                most = fmaxf(most, fabsf(value));
    }
    most = lb_block_max(most, of_warp);
    // Divided by it, the largest magnitude is at most 2^15.
    const float scale = power_up_to(__fmul_rn(most, 0x1p-14f)), inverse = __fdiv_rn(1.0f, scale);
    for (size_t i = 8 * threadIdx.x; i < k; i += 8 * blockDim.x) {
        float rest[8];
        lb_load8<type>(rest, row, i, k, aligned);
        for (float &value : rest)
            value = __fmul_rn(value, inverse);
        const size_t at = i / 64 * 64 + place_of(m, i % 64 / 16, i / 8 % 2);
        for (int p = 0; p < x_parts<type>; p++) {
            lb_pack<uint16_t, 8> pack;
            for (int j = 0; j < 8; j++) {
                const __half half = __float2half_rn(rest[j]);
                pack.set(j, __half_as_ushort(half));
                // Of an infinity nothing is left.
                rest[j] = fabsf(rest[j]) < INFINITY ? __fsub_rn(rest[j], __half2float(half)) : 0.0f;
            }
            lb_write(halves + p * part + at, pack);
        }
    }
    return scale;
}

// One block of threads prepares one row.
template <lowbit_float type>
__global__ void __launch_bounds__(PREPARE_THREADS)
    prepare_rows_kernel(const lb_bits<type> *x, size_t x_stride, size_t k,
                        lowbit_cuda_lut4_rows rows) {
    ptx::begin_next();
    LB_SHARED(of_warp, int32_t[PREPARE_THREADS / 32]);
    const size_t m = blockIdx.x;
    const float scale =
        prepare_row<type>(x + m * x_stride, m, k, rows.halves + m * k, gridDim.x * k, of_warp);
    if (threadIdx.x == 0)
        rows.scale[m] = scale;
}

__device__ __forceinline__ void store_sum(const lowbit_cuda_lut4_linear &a, size_t m, size_t n,
                                          float sum, float scale, float unit) {
    float y = __fmul_rn(__fmul_rn(sum, scale), unit);
    if (a.bias)
        y = __fadd_rn(y, lb_load_any(a.bias_type, a.bias, n));
    lb_store_any(a.y_type, a.y, m * a.y_stride + n, y);
}

} // namespace

#endif
